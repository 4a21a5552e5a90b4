"""Every reference case of the original LaViDa, from the original checkpoint through `shirg convert`."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exactness import REFERENCE, WITHOUT_BASE, Case, Golden, compare, compare_exactly, full_size, reference_cases

GOLDEN = REFERENCE / "golden"
DOCS = (Path(__file__).parents[1] / "docs" / "exactness.md").read_text(encoding="utf-8")
# The text tower of google/siglip-so400m-patch14-384.
TEXT_TOWER = {
    **{"vocab_size": 32000, "hidden_size": 1152, "intermediate_size": 4304, "projection_size": 1152},
    **{"num_hidden_layers": 27, "num_attention_heads": 16, "max_position_embeddings": 64},
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    return reference_cases(tmp_path_factory.mktemp("reference") / "converted")


def test_every_reference_case_passes(cases):
    assert not [case for case in cases if not case.passed]
    assert len({case.name for case in cases}) == len(cases) == 152
    generations = [case for case in cases if case.name.startswith("generation") and "logits" not in case.name]
    assert len(generations) == 2 * 17 and all(case.tolerance == 0 for case in generations)


def test_every_tensor_of_the_reference_is_compared(cases):
    unread = {case.name: case.entries for case in cases if "that no case reads" in case.name}
    assert unread == {
        f"{path.name}: tensors that no case reads": len(load_file(path)) for path in GOLDEN.glob("*.safetensors")
    }
    schedules = [case for case in cases if case.name.startswith("schedule ")]
    assert len(schedules) == len(json.loads((GOLDEN / "schedules.json").read_text()))
    for name in json.loads((GOLDEN / "meta.json").read_text())["landscape"]["generate"]:
        assert {f"generation {name}: tokens", f"generation {name}: every step"} <= {case.name for case in cases}


def test_the_table_of_the_docs_has_these_cases(cases):
    assert f"{len(cases)} of {len(cases)} cases pass." in DOCS
    assert [case.name for case in cases if f"| {case.name} | {case.entries:,} |" not in DOCS] == []


def test_what_the_docs_list_is_all_that_is_added_to_the_full_size():
    original, whole = full_size("lavida", **WITHOUT_BASE), full_size("shirg", relevance_text_config=TEXT_TOWER)
    assert {name: whole.get(name) for name in original} == original
    added = whole.keys() - original.keys()
    listed = re.findall(r"^\| [\w' ]+ \| ([\d,]+) \| ([\d,]+) \| [\w ]+ \| `([\w.]+)\*` \|$", DOCS, flags=re.MULTILINE)
    for tensors, parameters, prefix in listed:
        names = {name for name in added if name.startswith(prefix)}
        assert (f"{len(names):,}", f"{sum(math.prod(whole[name]) for name in names):,}") == (tensors, parameters)
        added -= names
    assert len(listed) == 4 and not added


def test_a_difference_is_a_failure_and_a_tensor_that_nothing_reads(tmp_path):
    save_file({"read": torch.ones(2), "left": torch.ones(3)}, tmp_path / "some.safetensors")
    golden = Golden(tmp_path / "some.safetensors")
    assert golden["read"].tolist() == [1, 1]
    assert (golden.unread_case().passed, golden.unread_case().error) == (False, 1)
    assert golden.unread_case().name.endswith("no case reads: left")
    expected = torch.arange(1.0, 5.0)
    assert compare("same", expected, expected, 1e-4).passed
    assert not compare("far", expected + torch.tensor([0, 0, 0, 1e-2]), expected, 1e-4).passed
    assert not compare_exactly("ids", torch.tensor([1, 2]), torch.tensor([1, 3])).passed
    assert not compare_exactly("length", torch.tensor([1, 2]), torch.tensor([1, 2, 3])).passed
    with pytest.raises(ValueError, match="shape"):
        compare("shape", expected[:2], expected, 1e-4)
