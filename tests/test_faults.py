"""The corpus of tests/faults: every bad input is an error that says what to do, and every odd one is taken."""

from pathlib import Path

import pytest

from faults import checkpoints, commands, configs, generation, images, prompts, requests, rows
from faults.case import Case, check, checkpoint, model, picture, processor, temporary_files_in

KINDS = (images, prompts, configs, generation, checkpoints, rows, commands, requests)
CASES: list[Case] = [case for kind in KINDS for case in kind.CASES]


@pytest.fixture(scope="module", autouse=True)
def made():
    """What the cases share is made before the first of them, outside of its time limit."""
    for make in (model, processor, picture, checkpoint, checkpoints.adapter, requests.client):
        make()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, tmp_path: Path):
    folder, temporary = tmp_path / "work", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    with temporary_files_in(temporary):
        check(case, folder, temporary)
