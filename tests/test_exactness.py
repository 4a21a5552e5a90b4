"""Every reference case of the original LaViDa, from the original checkpoint through `shirg convert`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from exactness import (
    Case,
    Golden,
    added_parts,
    all_cases,
    compare,
    compare_exactly,
    convert_reference,
)

REFERENCE = Path(__file__).parent / "fixtures" / "lavida"
GOLDEN = REFERENCE / "golden"
DOCS = (Path(__file__).parents[1] / "docs" / "exactness.md").read_text()


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[Case]:
    model, processor = convert_reference(REFERENCE, tmp_path_factory.mktemp("reference") / "converted")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the original was run
    found = list(all_cases(model, processor, GOLDEN))
    torch.set_num_threads(threads)
    return found


def test_every_reference_case_passes(cases):
    assert not [case for case in cases if not case.passed]
    assert len({case.name for case in cases}) == len(cases)


def test_every_tensor_of_the_reference_is_compared(cases):
    unread = {case.name: case.entries for case in cases if "that no case reads" in case.name}
    assert unread == {
        f"{path.name}: tensors that no case reads": len(load_file(path)) for path in GOLDEN.glob("*.safetensors")
    }
    schedules = [case for case in cases if case.name.startswith("schedule ")]
    assert len(schedules) == len(json.loads((GOLDEN / "schedules.json").read_text()))
    generations = json.loads((GOLDEN / "meta.json").read_text())["landscape"]["generate"]
    for name in generations:
        assert {f"generation {name}: tokens", f"generation {name}: every step"} <= {case.name for case in cases}


def test_a_tensor_that_nothing_reads_is_a_failure_that_names_it(tmp_path):
    save_file({"read": torch.ones(2), "left": torch.ones(3)}, tmp_path / "some.safetensors")
    golden = Golden(tmp_path / "some.safetensors")
    assert "left" in golden and "other" not in golden
    assert golden["read"].tolist() == [1, 1]
    case = golden.unread_case()
    assert (case.passed, case.entries, case.error) == (False, 2, 1)
    assert case.name == "some.safetensors: tensors that no case reads: left"
    assert golden["left"].shape == (3,)
    assert golden.unread_case().passed


def test_generated_ids_are_compared_exactly(cases):
    generations = [case for case in cases if case.name.startswith("generation") and "logits" not in case.name]
    assert len(generations) == 2 * 17
    assert all(case.tolerance == 0 for case in generations)


def test_the_table_of_the_docs_has_these_cases(cases):
    assert f"{len(cases)} of {len(cases)} cases pass." in DOCS
    for case in cases:
        assert f"| {case.name} | {case.entries:,} |" in DOCS


def test_what_a_preset_adds_to_the_full_size_is_what_the_docs_list():
    parts = {part.part: part for part in added_parts()}
    assert {name: (part.presets, len(part.shapes)) for name, part in parts.items()} == {
        "SigLIP's last layer": (("lavida", "shirg"), 16),
        "SigLIP's pooling head": (("lavida", "shirg"), 11),
        "SigLIP's text tower": (("lavida", "shirg"), 438),
        "the foveal position table": (("shirg",), 1),
    }
    assert parts["the foveal position table"].shapes == {
        "model.vision_tower.foveal_position_embedding.weight": (1024, 1152)
    }
    listed = " ".join(DOCS.split())
    for part in parts.values():
        count = f"{len(part.shapes)} tensor{'s' if len(part.shapes) > 1 else ''}"
        assert f"{part.part}, {count}, {part.parameters:,} parameters, in {' and '.join(part.presets)}" in listed


def test_a_difference_is_a_failure():
    expected = torch.arange(1.0, 5.0)
    assert compare("same", expected, expected, 1e-4).passed
    assert not compare("far", expected + torch.tensor([0, 0, 0, 1e-2]), expected, 1e-4).passed
    assert not compare_exactly("ids", torch.tensor([1, 2]), torch.tensor([1, 3])).passed
    assert not compare_exactly("length", torch.tensor([1, 2]), torch.tensor([1, 2, 3])).passed
    with pytest.raises(ValueError, match="shape"):
        compare("shape", expected[:2], expected, 1e-4)
