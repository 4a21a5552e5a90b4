"""The recipe of the bundled checkpoint: scenes, targets, tokenizer, and a packed loss that equals inference."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from configuration_shirg import ShirgLavidaProcessor
from modeling_shirg.evaluation.exact_match import wilson_interval
from modeling_shirg.evaluation.synthetic import CHARACTERS, COLORS, FAMILIES, SHAPES, Mark, scene
from modeling_shirg.training import packed
from modeling_shirg.training.dense import MARKS, patch_owners, patch_targets
from modeling_shirg.training.tiny import tiny_config as bundled_config
from modeling_shirg.training.tiny import tiny_tokenizer
from tiny_model import TEXT, VISION, tiny_config, tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.mark.parametrize("family", ["page", *FAMILIES])
def test_a_scene_is_a_function_of_split_family_and_index(family):
    first, again, other, held_out = (
        scene(family, split, index) for split, index in (("train", 3), ("train", 3), ("train", 4), ("test", 3))
    )
    assert first.image.tobytes() == again.image.tobytes() and first.marks == again.marks
    assert first.marks != other.marks and first.marks != held_out.marks


def test_the_answer_to_a_cell_is_the_mark_drawn_in_it():
    for index in range(20):
        drawn = scene("grid", "test", index)
        for number, (question, answer) in enumerate(drawn.questions):
            assert question == f"What is in cell {number + 1}?"
            (mark,) = [
                mark
                for mark in drawn.marks
                if (
                    3 * (mark.box[0] + mark.box[2]) / 2 // drawn.image.width,
                    3 * (mark.box[1] + mark.box[3]) / 2 // drawn.image.height,
                )
                == (number % 3, number // 3)
            ]
            assert mark.label == answer


def test_the_colour_drawn_is_the_colour_named():
    for index in range(20):
        drawn = scene("guard", "test", index)
        (mark,) = drawn.marks
        x, y = (int((mark.box[i] + mark.box[i + 2]) / 2) for i in (0, 1))
        pixel = np.array(drawn.image.getpixel((x, y)))
        nearest = min(COLORS, key=lambda name: np.abs(pixel - COLORS[name]).sum())
        assert (nearest, mark.label) == (drawn.questions[0][1], drawn.questions[1][1])


def test_patch_targets_name_what_covers_a_patch():
    boxes = np.array([[0, 0, 0.5, 0.5], [0.5, 0, 0.5, 0.5], [0, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]], np.float32)
    marks = [
        Mark("K", "pink", (30, 0, 80, 50)),
        Mark("7", "red", (0, 0, 30, 50)),
        Mark("star", "blue", (60, 60, 70, 70)),
        Mark("Z", "green", (0, 90, 10, 390)),
    ]
    labels, colors = patch_targets(marks, patch_owners(marks, boxes, 100, 100))
    names = list(COLORS)
    assert labels.tolist() == [MARKS.index("7") + 1, MARKS.index("K") + 1, 0, MARKS.index("star") + 1]
    assert colors.tolist() == [names.index("red") + 1, names.index("pink") + 1, 0, names.index("blue") + 1]


@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_marks_and_colours_are_single_tokens_and_the_ids_never_change(tokenizer):
    for word in (*CHARACTERS, *SHAPES, *COLORS):
        assert len(tokenizer(word).input_ids) == 1, word
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


def test_the_bundled_geometry_is_the_toy_one(tokenizer):
    assert bundled_config(tokenizer).num_image_tokens == 245


def _small(tokenizer):
    """The bundled checkpoint's tokenizer over a model of test widths."""
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
    }
    config = tiny_config(
        vision_config=VISION,
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **ids,
    )
    return tiny_model(config), ShirgLavidaProcessor.from_config(config, tokenizer)


@pytest.mark.parametrize("joint", [True, False])
def test_the_packed_loss_is_the_loss_of_inference(tokenizer, monkeypatch, joint):
    model, processor = _small(tokenizer)
    monkeypatch.setattr(packed, "ALIGNMENT_WEIGHT", 0.0)
    monkeypatch.setattr(packed, "POINTER_WEIGHT", 0.0)
    monkeypatch.setattr(packed, "POINTER_LAYER", 1)
    monkeypatch.setattr(packed, "_draw_masks", lambda answer_ids: torch.ones_like(answer_ids, dtype=torch.bool))
    questions = 1 if joint else 3
    dataset = packed.QuestionDataset(processor, "train", range(4), questions, warm_up=0.5)
    batch = dataset.collate([dataset[i] for i in range(4)])
    with torch.no_grad():
        loss = packed.PackedAnswerModel(model, tokenizer, questions, joint)(**batch)["loss"]
        losses, weights = [], []
        for row in range(4):
            for number in range(questions):
                one = _answer_losses(model, processor, batch, row, number, blind_image=not joint)
                weight = torch.where(
                    batch["answer_ids"][row, number] == tokenizer.eos_token_id, packed.PADDING_WEIGHT, 1.0
                )
                losses.append(one * weight)
                weights.append(weight)
    assert torch.allclose(loss, torch.cat(losses).sum() / torch.cat(weights).sum(), rtol=1e-4)


def _answer_losses(model, processor, batch, row: int, number: int, blind_image: bool) -> torch.Tensor:
    """Cross-entropy per answer token from an unpacked forward in which the prompt cannot see the answer."""
    question = batch["question_ids"][row, number, : batch["question_lengths"][row, number]]
    placeholders = torch.full((processor.num_image_tokens,), processor.image_token_id)
    prompt = torch.cat([batch["prefix_ids"][row], placeholders, question])[None]
    mask = torch.zeros_like(prompt)
    mask[0, -len(question) :] = batch["question_mask"][row, number, : len(question)]
    embeds, _ = model.model.prepare_inputs_embeds(
        prompt,
        batch["pixel_values"][row, None],
        batch["fovea_pixel_values"][row, None],
        None if blind_image else mask,
    )
    answer = batch["answer_ids"][row, number]
    blanks = model.get_input_embeddings()(torch.full_like(answer, model.config.mask_token_id))[None]
    length, question_start = prompt.shape[1], prompt.shape[1] - len(question)
    sees = torch.ones(1, 1, length + len(answer), length + len(answer), dtype=torch.bool)
    sees[:, :, :length, length:] = False
    if blind_image:
        sees[:, :, :question_start, question_start:] = False
    logits = model(inputs_embeds=torch.cat([embeds, blanks], dim=1), attention_mask=sees).logits[0, length:]
    return F.cross_entropy(logits, answer, reduction="none")


def test_wilson_interval_by_hand():
    low, high = wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0


@pytest.mark.slow
def test_training_runs_resumes_and_exports_a_checkpoint_that_answers(tmp_path):
    sizes = ["--see_images", "128", "--sharpen_images", "64", "--read_images", "64", "--answer_images", "64"]
    command = [
        sys.executable,
        "-m",
        "shirg_scripts.train_tiny",
        "--output_dir",
        str(tmp_path / "run"),
        "--compile",
        "False",
    ]
    for extra in ([], ["--export", str(tmp_path / "out")]):
        run = subprocess.run([*command, *sizes, *extra], capture_output=True, text=True, timeout=1200)
        assert run.returncode == 0, run.stderr
    assert "mark_accuracy" not in run.stdout, "the second run found every stage finished"
    card = [sys.executable, "-m", "shirg_scripts.card_tiny", "--model", str(tmp_path / "out"), "--images", "8"]
    run = subprocess.run(card, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr
    assert "What is in cell N?" in (tmp_path / "out" / "README.md").read_text()
