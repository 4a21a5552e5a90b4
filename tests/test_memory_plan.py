"""The memory plan: what it counts, and that a real step takes as much."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg.training.footprints import apply_footprint, named_footprint, trainable_counts
from modeling_shirg.training.memory_plan import Workload, plan_memory
from shirg_scripts.cli import main
from tiny_model import chat, encode, noise_image, tiny_config, tiny_model, tiny_processor

ROWS, ANSWER = 4, 40
VISION = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 4}
TEXT = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 8000,
}
FOOTPRINT = named_footprint("shirg-extra", rank=8)


def _batch(config):
    questions = [f"What is {row}?" for row in range(ROWS - 1)] + ["A longer question, so that the others are padded?"]
    inputs = encode(tiny_processor(config), *(chat(each, noise_image(row)) for row, each in enumerate(questions)))
    filled = {"input_ids": 7, "attention_mask": 1, "question_mask": 0}
    for name, value in filled.items():
        inputs[name] = torch.nn.functional.pad(inputs[name], (0, ANSWER), value=value)
    labels = inputs["input_ids"].clone()
    labels[:, :-ANSWER] = -100
    return {**inputs, "labels": labels}


def _allocated_at_most(step) -> int:
    """The most bytes that torch's allocator had handed out at once since `step` began."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events))


@pytest.mark.parametrize(
    ("preset", "checkpointing"),
    [("shirg", False), ("shirg", True), ("lavida-980", True), ("shirg-mixed", False), ("shirg-fixed", True)],
)
def test_a_real_step_takes_what_was_planned(preset, checkpointing):
    config = tiny_config(preset, vision_config=VISION, text_config=TEXT)
    model = apply_footprint(tiny_model(config), FOOTPRINT, 0).train()
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable(
            activation_checkpointing_kwargs={"use_reentrant": False}
        )
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
    batch = _batch(config)

    def step():
        model(**batch).loss.backward()
        optimizer.step()

    measured = _allocated_at_most(step)
    workload = Workload(
        rows=ROWS,
        text_tokens=batch["input_ids"].shape[1] - ANSWER - config.num_image_tokens,
        answer_tokens=ANSWER,
        dtype=torch.float32,
        autocast=False,
        activation_checkpointing=checkpointing,
    )
    plan = plan_memory(config, FOOTPRINT, workload)
    assert measured == pytest.approx(plan.activations + plan.gradients, rel=0.05)
    assert plan.weights + plan.adapter == sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    assert plan.gradients == 4 * trainable_counts(model).total
    assert plan.optimizer == sum(v.nbytes for state in optimizer.state.values() for v in state.values() if v.ndim)


BUNDLED = str(Path(__file__).parents[1] / "hub_card" / "shirg-lavida-tiny")


def test_the_command_plans_what_training_would_be_asked_for(capsys):
    model = ["--model", BUNDLED, "--prune_method", "shirg-fixed", "--option", "selection_budget=64"]
    trained = ["--footprint", "projector", "--rank", "8", "--alpha", "4", "--dtype", "float32"]
    step = ["--per_device_train_batch_size", "2", "--answer_length", "8", "--bf16", "false"]
    assert main(["plan", *model, *trained, *step, "--activation_checkpointing", "false", "--json"]) == 0
    config = ShirgLavidaConfig.from_pretrained(BUNDLED, prune_method="shirg-fixed", selection_budget=64)
    workload = Workload(2, 128, 8, torch.float32, autocast=False, activation_checkpointing=False)
    expected = plan_memory(config, named_footprint("projector", 8, 4), workload)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["total"] == expected.total


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--answer_length", "0"], "answer_length must be at least 1, got 0"),
        (["--dtype", "int4"], "Unknown dtype 'int4'"),
        (["--adapter", "runs/align"], "the same with and without --adapter"),
        (["--model", BUNDLED, "--alpha", "0"], "alpha > 0"),
    ],
)
def test_a_plan_that_cannot_be_is_an_error(capsys, words, message):
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err
