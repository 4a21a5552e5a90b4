"""What fewer denoising forwards cost in accuracy, on rendered questions, as a table.

    python -m shirg_scripts.fewer_forwards --out docs/fewer_forwards.md
    python -m shirg_scripts.fewer_forwards --model my-lavida --images 200

Every question is read once and answered under each setting, all from the same prompt; exact match, with Wilson's
interval, beside the forwards that an answer took.
"""

import argparse
import json
from pathlib import Path
from typing import Any

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"steps": 4},
    {"steps": 2},
    {"confidence_threshold": 0.95},
    {"confidence_threshold": 0.9},
    {"confidence_threshold": 0.5},
    {"confidence_factor": 0.5},
    {"confidence_factor": 1.0},
    {"stop_at_eos": True},
    {"stop_at_eos": True, "confidence_threshold": 0.9},
    {"block_length": 4},
    {"block_length": 4, "dual_cache": True},
)

PAGE = """\
# Fewer forwards

Written by `python -m shirg_scripts.fewer_forwards`; do not edit.

{model}, {tokens} tokens of answer, {count} held-out rendered questions of the families {families}. The first row is
one token per forward; `same` is the share of answers whose text is that row's. Toy-scale: short answers, on which
every position that is not text is end-of-text.

{table}
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .arguments import add_model_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--images", type=int, default=50, help="of each family, with one question each")
    parser.add_argument("--out", type=Path, default=Path("docs/fewer_forwards.md"), help="write the page here")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Answer every question under every setting, and write the page."""
    from modeling_shirg.evaluation.scenes import FAMILIES

    from .loading import load

    if args.images < 1:
        raise ValueError(f"--images {args.images}: it must be 1 or more.")
    loaded = load(args.model, device=args.device, dtype=args.dtype, revision=args.revision)
    asked = [
        ask(loaded, family, index, SETTINGS, tokens=loaded.model.generation_config.max_new_tokens)
        for family in FAMILIES
        for index in range(args.images)
    ]
    page = PAGE.format(
        model=loaded.name,
        tokens=loaded.model.generation_config.max_new_tokens,
        count=len(asked),
        families=", ".join(FAMILIES),
        table=summary(asked, SETTINGS),
    )
    args.out.write_text(page)
    print(page)


def ask(loaded, family: str, index: int, settings: tuple[dict, ...], tokens: int) -> list[dict[str, Any]]:
    """One question of the test split under each setting: `text`, `right` and `forwards`."""
    import torch

    from modeling_shirg.evaluation.scenes import scene

    drawn, model, processor = scene(family, "test", index), loaded.model, loaded.processor
    question = drawn.questions[index % len(drawn.questions)]
    content = [{"type": "image", "image": drawn.image}, {"type": "text", "text": question.text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    found = []
    for setting in settings:
        generation = {"max_new_tokens": tokens, "return_dict_in_generate": True, **setting}
        with torch.no_grad():
            output = model.generate(**inputs, **generation)
        (text,) = processor.post_process_image_text_to_text(output.sequences[:, inputs["input_ids"].shape[1] :])
        found.append({"text": text, "right": text == question.answer, "forwards": output.forwards})
    return found


def summary(asked: list[list[dict[str, Any]]], settings: tuple[dict, ...]) -> str:
    """A table with one row for each setting, from what `ask` found of every question."""
    from modeling_shirg.evaluation.exact_match import wilson_interval

    from .bench_tables import table

    rows = []
    for place, setting in enumerate(settings):
        found = [answers[place] for answers in asked]
        right, count = sum(each["right"] for each in found), len(found)
        low, high = wilson_interval(right, count)
        same = sum(answers[place]["text"] == answers[0]["text"] for answers in asked) / count
        forwards = sum(each["forwards"] for each in found) / count
        name = ", ".join(f"{key}={json.dumps(value)}" for key, value in setting.items()) or "defaults"
        rows.append([name, f"{right / count:.3f}", f"{low:.3f} to {high:.3f}", f"{same:.3f}", f"{forwards:.2f}"])
    return table(["setting", "accuracy", "95% interval", "same", "forwards"], rows)


if __name__ == "__main__":
    main(parse_args())
