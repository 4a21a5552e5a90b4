"""The recipe of the bundled checkpoint: scenes, targets, tokenizer, a packed loss that equals inference, and stages.

A stage that was stopped and resumed must end with the weights of one that was not.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import TrainerCallback

from configuration_shirg import ShirgLavidaImageProcessor, ShirgLavidaProcessor
from modeling_shirg.evaluation.exact_match import wilson_interval
from modeling_shirg.evaluation.scenes import drawing
from modeling_shirg.evaluation.synthetic import CHARACTERS, COLORS, FAMILIES, SHAPES, Mark, scene
from modeling_shirg.training import packed, tiny
from modeling_shirg.training.dense import MARKS, PageDataset, patch_owners, patch_targets
from modeling_shirg.training.stage import STAGE_FILE, WEIGHTS_FILE
from modeling_shirg.training.tiny import tiny_config as bundled_config
from modeling_shirg.training.tiny import tiny_tokenizer
from shirg_scripts.train_tiny import ScriptArguments
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


def _small_config(tokenizer):
    """The bundled checkpoint's tokenizer over a model of test widths."""
    ids = {
        name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id")
    }
    return tiny_config(
        vision_config=VISION,
        text_config={**TEXT, "vocab_size": len(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **ids,
    )


def _small(tokenizer):
    config = _small_config(tokenizer)
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


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'shirg-lavida\[eval\]'"):
        drawing.load_font.__wrapped__("DejaVuSans.ttf", 12)


def test_the_view_size_alternates_from_batch_to_batch(tokenizer):
    image_processor = ShirgLavidaImageProcessor.from_config(_small_config(tokenizer))
    dataset = PageDataset(image_processor, tokenizer, "train", range(5, 11), batch_size=2)
    assert [dataset[i]["use_fovea"] for i in range(6)] == [True, True, False, False, True, True]


class Killed(Exception):
    """Stands for a killed process."""


class Watch(TrainerCallback):
    """Remembers the steps that ran; raises `Killed` when checkpoint number `last_step` is written."""

    def __init__(self, last_step: int | None):
        self.last_step = last_step
        self.steps = []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        if state.global_step == self.last_step:
            raise Killed


@pytest.fixture
def train(tokenizer, monkeypatch):
    """Train stage `see` or `read` on 12 images and a model of test widths; returns the steps that ran."""
    monkeypatch.setattr(tiny, "tiny_config", _small_config)
    monkeypatch.setattr(packed, "POINTER_LAYER", 1)

    def run(root: Path, stage: str, killed_at: int | None = None, **options) -> list[int]:
        args = ScriptArguments(output_dir=str(root), compile=False, num_workers=0, save_steps=2, **options)
        watch = Watch(killed_at)

        class WatchedTrainer(tiny.StageTrainer):
            def __init__(self, **kwargs):
                super().__init__(callbacks=[watch], **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(tiny, "StageTrainer", WatchedTrainer)
            common = {"images": range(12), "batch_size": 2, "learning_rate": 1e-3}
            if stage == "see":
                tiny.train_vision(root / "see", args, previous=None, **common)
            else:
                tiny.train_answers(root / "read", args, root / "see", num_questions=2, joint=False, **common)
        return watch.steps

    return run


@pytest.mark.parametrize("stage", ["see", "read"])
def test_a_stopped_stage_ends_as_if_it_had_not_been_stopped(train, tmp_path, stage):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for root in (whole, stopped) if stage == "read" else ():
        train(root, "see")
    assert train(whole, stage) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Killed):
        train(stopped, stage, killed_at=4)
    assert not json.loads((stopped / stage / STAGE_FILE).read_text())["finished"]
    assert not (stopped / stage / WEIGHTS_FILE).exists()
    half = stopped / stage / "checkpoint-6"
    half.mkdir()
    (half / WEIGHTS_FILE).write_bytes(b"half")
    (half / "trainer_state.json").write_text('{"global_step": 6, "log_hi')
    assert train(stopped, stage) == [5, 6], "resumed from checkpoint 4, the last complete one"
    assert train(stopped, stage) == [], "a finished stage is skipped"
    _assert_same_weights(whole / stage, stopped / stage)


def _assert_same_weights(one: Path, other: Path) -> None:
    torch.testing.assert_close(load_file(one / WEIGHTS_FILE), load_file(other / WEIGHTS_FILE), rtol=1e-5, atol=1e-7)


def test_a_stage_is_not_reused_with_other_settings(train, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, "see", killed_at=2)
    for _ in ("unfinished", "finished"):
        with pytest.raises(ValueError, match="seed=0, this run asks for seed=1.*another output_dir.*back to seed=0"):
            train(tmp_path, "see", seed=1)
        train(tmp_path, "see")


def test_a_training_of_unknown_settings_is_not_continued(train, tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, "see", killed_at=2)
    with pytest.raises(ValueError, match="not a finished stage"):
        train(tmp_path, "read")
    (tmp_path / "see" / STAGE_FILE).unlink()
    with pytest.raises(ValueError, match="no stage.json"):
        train(tmp_path, "see")


def test_a_finished_stage_brings_its_own_config_and_tokenizer(train, tokenizer, tmp_path, monkeypatch):
    train(tmp_path, "see")
    expected = _small_config(tokenizer)
    monkeypatch.delattr(tiny, "tiny_tokenizer")
    monkeypatch.delattr(tiny, "tiny_config")
    train(tmp_path, "read")
    tiny.export(tmp_path / "read", tmp_path / "out")
    ours = ShirgLavidaProcessor.from_config(expected, tokenizer)
    ours.save_pretrained(tmp_path / "expected")
    for file in (tmp_path / "expected").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    model, _ = tiny.load_stage(tmp_path / "read")
    assert model.config.to_dict() == expected.to_dict()


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_checkpoint_and_that_checkpoint_answers(tmp_path):
    sizes = ["--see_images", "128", "--sharpen_images", "32", "--read_images", "64", "--answer_images", "32"]
    module = [sys.executable, "-m", "shirg_scripts.train_tiny", "--compile", "False", "--save_steps", "1", *sizes]
    whole, killed, out = tmp_path / "whole", tmp_path / "killed", tmp_path / "out"
    _run([*module, "--output_dir", str(whole)])
    for stage in ("see", "read"):
        _run_until_checkpoint([*module, "--output_dir", str(killed)], killed / stage)
        assert not json.loads((killed / stage / STAGE_FILE).read_text())["finished"]
    log = _run([*module, "--output_dir", str(killed), "--export", str(out)])
    for stage in ("see", "sharpen"):
        assert f"Stage {stage}: finished before, skipped" in log
    assert f"Stage read: 64 images, {killed / 'read' / 'checkpoint-1'}" in log
    assert "Stage answer: 32 images, from the start" in log
    for stage in ("see", "sharpen", "read", "answer"):
        _assert_same_weights(whole / stage, killed / stage)
    _run([sys.executable, "-m", "shirg_scripts.card_tiny", "--model", str(out), "--images", "8"])
    assert "What is in cell N?" in (out / "README.md").read_text()


def _run(command: list[str]) -> str:
    """What the command wrote to its standard error."""
    run = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr
    return run.stderr


def _run_until_checkpoint(command: list[str], folder: Path) -> None:
    """Kill the command, its workers too, as soon as `folder` holds a checkpoint."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while not any(file.stat().st_size for file in folder.glob("checkpoint-*/trainer_state.json")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
