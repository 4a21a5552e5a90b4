"""The recipe of the bundled checkpoint: scenes, targets, tokenizer, a packed loss that equals inference, and stages.

A stage that was stopped and resumed must end with the weights of one that was not.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback

from configuration_shirg import ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.evaluation.intervals import wilson_interval
from modeling_shirg.scenes import FAMILIES, Mark, scene
from modeling_shirg.scenes.drawing import CHARACTERS, COLORS, SHAPES
from modeling_shirg.training.toy import packed, questions
from modeling_shirg.training.toy import recipe as tiny
from modeling_shirg.training.toy.dense import MARKS, WORDS, ViewBatches, draw_view, patch_targets, token_boxes
from modeling_shirg.training.toy.recipe import STAGES, WEIGHTS_FILE, ScriptArguments, tiny_tokenizer
from tiny_model import TEXT, VISION, tiny_config, tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def test_patch_targets_name_the_two_marks_of_a_patch_from_left_to_right():
    """A view of 2x2 patches of 14 pixels: two glyphs share the first patch, a star lies on the last, a sliver counts
    for nothing."""
    marks = [
        Mark("K", "pink", (7, 2, 13, 12)),
        Mark("7", "red", (-2, 2, 7, 14)),
        Mark("star", "blue", (16, 16, 26, 26)),
        Mark("Z", "green", (12, 16, 30, 20)),
    ]
    boxes_M4 = np.array([mark.box for mark in marks], np.float32)
    slots_N2, colors_N = patch_targets(marks, boxes_M4, token_boxes(np.array([[0, 0, 28, 28]]), 2))
    seven, k, star, z = (MARKS.index(label) + 1 for label in ("7", "K", "star", "Z"))
    assert slots_N2.tolist() == [[seven, k], [0, 0], [0, 0], [star, z]]
    names = [None, *COLORS]
    assert [names[color] for color in colors_N] == ["pink", None, None, "blue"]


@pytest.mark.parametrize(("foveal", "seed"), [(True, 0), (True, 1), (False, 0), (False, 1), (False, 2)])
def test_the_boxes_of_a_view_hold_its_ink(tokenizer, foveal, seed):
    drawn, config = scene("page", "validation", 3), tiny.tiny_config(tokenizer)
    image, boxes_M4 = draw_view(drawn, config, np.random.default_rng(seed), foveal)
    size = image.width
    assert image.size == ((224, 224) if foveal else (192, 192))
    grey = np.asarray(image.convert("L"))
    inside = 0
    for left, top, right, bottom in boxes_M4:
        if 0 <= left and right < size and 0 <= top and bottom < size:
            ink = grey[int(top) : int(np.ceil(bottom)) + 1, int(left) : int(np.ceil(right)) + 1]
            assert ink.min() < 215, "nothing is drawn there"
            inside += 1
    assert inside > 0


@given(text=st.text(max_size=60))
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text


def test_marks_and_colours_are_single_tokens_and_the_ids_never_change(tokenizer):
    for word in (*CHARACTERS, *SHAPES, *COLORS):
        assert len(tokenizer(word).input_ids) == 1, word
    assert tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


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


def _look_in_two_layers(monkeypatch) -> None:
    """Models of test widths have two."""
    monkeypatch.setattr(packed, "ASKING_LAYER", 0)
    monkeypatch.setattr(packed, "LOOKING_LAYER", 1)


@pytest.mark.parametrize("num_questions", [1, 3])
def test_the_packed_loss_is_that_of_single_questions_which_the_image_cannot_see(tokenizer, monkeypatch, num_questions):
    config = _small_config(tokenizer).with_preset("lavida-980")
    model, processor = tiny_model(config), ShirgLavidaProcessor.from_config(config, tokenizer)
    for weight in ("ALIGNMENT_WEIGHT", "NAMING_WEIGHT", "PLACE_WEIGHT", "LOOK_WEIGHT"):
        monkeypatch.setattr(packed, weight, 0.0)
    _look_in_two_layers(monkeypatch)
    monkeypatch.setattr(packed, "_draw_masks", lambda answer_ids: torch.ones_like(answer_ids, dtype=torch.bool))
    batch = questions.QuestionBatches(processor, config.view_grid, num_questions)(range(4))
    with torch.no_grad():
        loss = packed.PackedAnswerModel(model, tokenizer, num_questions)(**batch)["loss"]
        losses, weights = [], []
        for row in range(4):
            for number in range(num_questions):
                losses.append(_answer_losses(model, processor, batch, row, number))
                ends = batch["answer_ids"][row, number] == tokenizer.eos_token_id
                weights.append(torch.where(ends, packed.PADDING_WEIGHT, 1.0))
    losses, weights = torch.cat(losses), torch.cat(weights)
    assert torch.allclose(loss, (losses * weights).sum() / weights.sum(), rtol=1e-4)


def _answer_losses(model, processor, batch, row: int, number: int) -> torch.Tensor:
    """Cross-entropy per answer token from an unpacked forward in which the prompt cannot see the answer."""
    question = batch["question_ids"][row, number, : batch["question_lengths"][row, number]]
    placeholders = torch.full((processor.num_image_tokens,), processor.image_token_id)
    prompt = torch.cat([batch["prefix_ids"][row], placeholders, question])[None]
    views = len(batch["pixel_values"]) // len(batch["prefix_ids"])
    embeds, _ = model.model.prepare_inputs_embeds(
        prompt, pixel_values=batch["pixel_values"][row * views : (row + 1) * views]
    )
    answer = batch["answer_ids"][row, number]
    blanks = model.get_input_embeddings()(torch.full_like(answer, model.config.mask_token_id))[None]
    length, question_start = prompt.shape[1], prompt.shape[1] - len(question)
    sees = torch.ones(1, 1, length + len(answer), length + len(answer), dtype=torch.bool)
    sees[:, :, :length, length:] = False
    sees[:, :, :question_start, question_start:] = False
    logits = model(inputs_embeds=torch.cat([embeds, blanks], dim=1), attention_mask=sees).logits[0, length:]
    return F.cross_entropy(logits, answer, reduction="none")


def test_a_look_costs_the_logarithm_of_its_share_of_the_attention():
    """Two keys of three share 0.6 and 0.2 of what is paid to these three; a row without a target costs nothing."""
    paid = torch.tensor([[0.3, 0.1, 0.1], [0.2, 0.2, 0.1]])
    targets = torch.tensor([[True, True, False], [False, False, False]])
    loss = packed.look_loss(packed.log_shares(paid), targets)
    assert loss.item() == pytest.approx(-np.log(0.8), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_question_names_and_where_its_answer_stands(tokenizer, family):
    """Of every kind: the word that names something, the tokens that it names, those on each answer's character."""
    config = _small_config(tokenizer).with_preset("lavida-980")
    processor = ShirgLavidaProcessor.from_config(config, tokenizer)
    batches = questions.QuestionBatches(processor, config.view_grid, 6)
    for index in range(4):
        drawn = scene(family, "validation", index)
        owned_TM = np.eye(len(drawn.marks), dtype=bool)  # one token per mark
        names_TL = questions.token_names(drawn.questions, owned_TM)
        for question in drawn.questions:
            asked = batches.asked(question, owned_TM, owned_TM)
            words = [tokenizer.decode([token]).strip() for token in asked["question_ids"][asked["question_looks"]]]
            assert words == ([question.name] if question.name else [])
            if question.name:
                named = {
                    m for q in drawn.questions if q.name == question.name for marks in q.answer_marks for m in marks
                }
                assert named == {mark for marks in question.answer_marks for mark in marks}
                assert {drawn.marks[mark].label for mark in question.name_marks} <= {question.name}
                marks = [mark for marks in question.answer_marks for mark in marks]
                assert names_TL[marks, WORDS.index(question.name)].all()
            for place, marks in enumerate(question.answer_marks):
                assert set(np.nonzero(asked["answer_looks"][place])[0]) == set(marks)
            assert not asked["answer_looks"][len(question.answer_marks) :].any()
            counted = int(question.answer) if question.kind == "count" else 0
            looks_K = asked["count_looks"]
            assert looks_K.sum() == pytest.approx(float(question.kind == "count"))
            assert (looks_K[1:] > 0).sum() == counted
            assert np.allclose(looks_K[looks_K > 0], 1 / (counted + 1))
        looks_TT = questions.name_looks(drawn.questions, owned_TM)
        pairs = {(v, key) for q in drawn.questions for marks in q.answer_marks for v in marks for key in q.name_marks}
        assert set(zip(*np.nonzero(looks_TT), strict=True)) == pairs
        assert bool(pairs) == (family in ("document", "chart"))
        named = {(q.name, mark) for q in drawn.questions if q.name for marks in q.answer_marks for mark in marks}
        assert names_TL.sum() == len(named)


def test_wilson_interval_by_hand():
    low, high = wilson_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0


def test_the_view_size_alternates_from_batch_to_batch(tokenizer):
    config = _small_config(tokenizer)
    batches = ViewBatches(config, tokenizer)
    sides = [batches([start, start + 1])["pixels"].shape[-1] for start in (4, 6, 8)]
    fovea, base = config.fovea_size, config.vision_config.image_size
    assert fovea != base and sides == [fovea, base, fovea]


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
    """Train a stage on 12 images in batches of 2 and a model of test widths; returns the steps that ran."""
    monkeypatch.setattr(tiny, "tiny_config", _small_config)
    small = {name: stage._replace(batch_size=2, learning_rate=1e-3) for name, stage in STAGES.items()}
    monkeypatch.setattr(tiny, "STAGES", {**small, "practise": STAGES["practise"]})
    _look_in_two_layers(monkeypatch)

    def run(root: Path, stage: str, killed_at: int | None = None, **options) -> list[int]:
        counts = {"see_images": 12, "sharpen_images": 2, "read_images": 12, "practise_images": 24}
        args = ScriptArguments(output_dir=str(root), num_workers=0, save_steps=2, **counts, **options)
        watch = Watch(killed_at)

        class WatchedTrainer(Trainer):
            def __init__(self, **kwargs):
                super().__init__(callbacks=[watch], **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(tiny, "Trainer", WatchedTrainer)
            tiny.check_settings(root, args)
            tiny.train_stage(root, stage, args)
        return watch.steps

    return run


@pytest.mark.parametrize("stage", ["see", "read"])
def test_a_stopped_stage_ends_as_if_it_had_not_been_stopped(train, tmp_path, stage):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for root in (whole, stopped) if stage == "read" else ():
        train(root, "see")
        train(root, "sharpen")
    assert train(whole, stage) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(Killed):
        train(stopped, stage, killed_at=4)
    half = stopped / stage / "checkpoint-6"
    half.mkdir()
    (half / WEIGHTS_FILE).write_bytes(b"half")
    (half / "trainer_state.json").write_text('{"global_step": 6, "log_hi')
    with pytest.raises(ValueError, match="seed=0.*seed=1"):
        train(stopped, "see", seed=1)
    assert train(stopped, stage) == [5, 6], "resumed from checkpoint 4, the last complete one"
    assert train(stopped, stage) == [], "a finished stage is skipped"
    _assert_same_weights(whole / stage, stopped / stage)


def _assert_same_weights(one: Path, other: Path) -> None:
    torch.testing.assert_close(load_file(one / WEIGHTS_FILE), load_file(other / WEIGHTS_FILE), rtol=1e-5, atol=1e-7)


def test_later_stages_start_from_the_earlier_ones_and_are_exported(train, tokenizer, tmp_path):
    """A single step, as in stage `practise` here, is one of warm-up, at learning rate 0."""
    for stage in STAGES:
        train(tmp_path, stage)
    _assert_same_weights(tmp_path / "read", tmp_path / "practise")
    expected = _small_config(tokenizer)
    tiny.export(tmp_path, tmp_path / "out")
    ShirgLavidaProcessor.from_config(expected, tiny_tokenizer()).save_pretrained(tmp_path / "expected")
    for file in (tmp_path / "expected").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
    written = json.loads((tmp_path / "out" / "training.json").read_text())
    assert {name: written[f"{name}_images"] for name in STAGES} == {
        "see": 12,
        "sharpen": 2,
        "read": 12,
        "practise": 24,
    }
    exported = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path / "out")
    for name in ("prune_method", "num_image_tokens", "fovea_size", "image_token_id", "mask_token_id"):
        assert getattr(exported.config, name) == getattr(expected, name), name
    assert exported.config.text_config.vocab_size == len(tokenizer)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_checkpoint_and_that_checkpoint_answers(tmp_path):
    sizes = ["--see_images", "128", "--sharpen_images", "32", "--read_images", "64", "--practise_images", "48"]
    module = [sys.executable, "-m", "modeling_shirg.training.toy.recipe", "--save_steps", "1", *sizes]
    whole, killed, out = tmp_path / "whole", tmp_path / "killed", tmp_path / "out"
    _run([*module, "--output_dir", str(whole)])
    for stage in ("see", "read"):
        _run_until_checkpoint([*module, "--output_dir", str(killed)], killed / stage)
        assert not (killed / stage / WEIGHTS_FILE).exists()
    log = _run([*module, "--output_dir", str(killed), "--export", str(out)])
    for stage in ("see", "sharpen"):
        assert f"Stage {stage}: finished before, skipped" in log
    assert f"Stage read: 64 images, {killed / 'read' / 'checkpoint-1'}" in log
    for stage in STAGES:
        _assert_same_weights(whole / stage, killed / stage)
    _run([sys.executable, "-m", "modeling_shirg.training.toy.card", "--model", str(out), "--images", "8"])
    assert "| entity_grid | identify |" in (out / "README.md").read_text()


def _run(command: list[str]) -> str:
    """What the command wrote to its standard error."""
    run = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert run.returncode == 0, run.stderr
    return run.stderr


def _run_until_checkpoint(command: list[str], folder: Path) -> None:
    """Kill the command, its workers too, as soon as `folder` holds a checkpoint."""
    with (
        tempfile.TemporaryFile("w+") as said,  # a pipe that nobody reads would fill and stop the command
        subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True) as process,
    ):
        deadline = time.monotonic() + 1200
        while not any(file.stat().st_size for file in folder.glob("checkpoint-*/trainer_state.json")):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                said.seek(0)
                pytest.fail(said.read())
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
