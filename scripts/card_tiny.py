"""Measure the bundled checkpoint on held-out scenes and write its model card.

    python -m shirg_scripts.card_tiny --model hub_card/shirg-lavida-tiny --images 600
    python -m shirg_scripts.card_tiny --model hub_card/shirg-lavida-tiny-base --prune_method lavida-980 --images 600

The figures of the card come from this command alone: scenes of split `test`, whose seeds training never saw. Rendering
them takes matplotlib's fonts: pip install 'shirg-lavida[eval]'.
"""

import argparse
import json
from pathlib import Path

FAMILY_TEXT = (
    "`chart`: bars or points, a letter and its value above each; asks for a value, the largest one's name, a "
    "difference",
    "`document`: a form or a receipt, rows of a letter and a sign; asks for the sign of a letter",
    "`entity_grid`: characters and shapes on a 3x3 grid; asks what is in a cell, where something is, "
    "how many there are",
    "`guard`: one to four large shapes; asks for a colour, a shape, their number",
)

STAGE_TEXT = {
    "see": "vision tower and projector, dense targets and a sigmoid image-text loss",
    "sharpen": "the same, smaller batches",
    "read": "projector and language model, masked diffusion, several questions behind each image",
    "practise": "the same, more grids to count in",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .arguments import preset_name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint; its README.md is written")
    parser.add_argument("--prune_method", type=preset_name, help="the system that is asked; by default its own")
    parser.add_argument("--images", type=int, default=600, help="held-out images per family, one question each")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Measure, then write figures.json and README.md into the folder."""
    from modeling_shirg.adapters_shirg import RUN_FILE, read_run
    from modeling_shirg.evaluation.calibrated_folder import with_calibration_section
    from modeling_shirg.evaluation.held_out import answer_rows, exact_match_facts, scene_rows
    from modeling_shirg.publishing.cards import render
    from modeling_shirg.running.load import load
    from modeling_shirg.scenes import FAMILIES
    from modeling_shirg.training.toy.recipe import TRAINING_FILE

    if not (args.model / TRAINING_FILE).is_file():
        raise ValueError(f"{args.model} has no {TRAINING_FILE}: train_tiny --export and bundle write it.")
    training = json.loads((args.model / TRAINING_FILE).read_text())
    loaded = load(str(args.model), args.prune_method, device="cpu", dtype="float32")
    figures = []
    for family in FAMILIES:
        rows, blank = (scene_rows(family, "test", args.images, is_blank) for is_blank in (False, True))
        seen, unseen = (answer_rows(loaded.model, loaded.processor, each, 32) for each in (rows, blank))
        for fact in exact_match_facts(rows, seen, unseen):
            figure = {"family": family, "kind": fact["task"], "count": fact["n"], "accuracy": fact["value"]}
            shares = {"low": fact["low"], "high": fact["high"], "no_image": fact["baseline"]}
            figures.append({**figure, **shares, "majority": fact["majority"]})
    (args.model / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    card = render(
        "tiny",
        {"license": "apache-2.0"},
        figures=_table(figures),
        families="\n".join(f"- {text}" for text in FAMILY_TEXT),
        parameters=f"{loaded.model.num_parameters():,}",
        image_tokens=loaded.model.config.num_image_tokens,
        images=args.images,
        training=_training_table(training),
        start=training.get("see_start"),
        run=read_run(str(args.model / RUN_FILE)) if (args.model / RUN_FILE).exists() else None,
        folder=args.model,
        system=loaded.model.config.prune_method,
        prune_method=args.prune_method,
        source=args.model,
        revision="main",
        image="grid.png",
        question="What is in cell 5?",
    )
    text = with_calibration_section(str(card), loaded.model.config.calibration)
    (args.model / "README.md").write_text(text)
    print(_table(figures))


def _table(figures) -> str:
    lines = [
        "| family | question | held-out questions | exact match (95% interval) | no image | majority answer |",
        "|---|---|---|---|---|---|",
    ]
    for figure in figures:
        shares = {name: f"{value:.1%}" for name, value in figure.items() if isinstance(value, float)}
        lines.append(
            f"| {figure['family']} | {figure['kind']} | {figure['count']} | **{shares['accuracy']}** "
            f"({shares['low']} to {shares['high']}) | {shares['no_image']} | {shares['majority']} |"
        )
    return "\n".join(lines)


def _training_table(training: dict) -> str:
    lines = ["| stage | what is trained | images | batch | learning rate |", "|---|---|---|---|---|"]
    for stage, text in STAGE_TEXT.items():
        images, batch, rate = (training[f"{stage}_{name}"] for name in ("images", "batch_size", "learning_rate"))
        lines.append(f"| {stage} | {text} | {images:,} | {batch} | {rate:g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(parse_args())
