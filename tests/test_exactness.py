"""Every reference case of the original LaViDa, from the original checkpoint through `shirg convert`."""

from pathlib import Path

import pytest
import torch

from modeling_shirg.evaluation.exactness import Case, all_cases, compare, compare_exactly, convert_reference

REFERENCE = Path(__file__).parent / "fixtures" / "lavida"


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    model, processor = convert_reference(REFERENCE, tmp_path_factory.mktemp("reference") / "converted")
    return list(all_cases(model, processor, REFERENCE / "golden"))


def test_every_reference_case_passes(cases):
    assert len(cases) == 138
    assert not [case for case in cases if not case.passed]


def test_generated_ids_are_compared_exactly(cases):
    generations = [case for case in cases if case.name.startswith("generation") and "logits" not in case.name]
    assert len(generations) == 2 * 17
    assert all(case.tolerance == 0 for case in generations)


def test_a_difference_is_a_failure():
    expected = torch.arange(1.0, 5.0)
    assert compare("same", expected, expected, 1e-4).passed
    assert not compare("far", expected + torch.tensor([0, 0, 0, 1e-2]), expected, 1e-4).passed
    assert not compare_exactly("ids", torch.tensor([1, 2]), torch.tensor([1, 3])).passed
    assert not compare_exactly("length", torch.tensor([1, 2]), torch.tensor([1, 2, 3])).passed
    with pytest.raises(ValueError, match="shape"):
        compare("shape", expected[:2], expected, 1e-4)
