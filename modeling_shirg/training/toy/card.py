"""Measure a toy checkpoint on held-out scenes and write its figures.json and its model card.

    python -m modeling_shirg.training.toy.card --model hub_card/shirg-lavida-tiny
    python -m modeling_shirg.training.toy.card --model hub_card/shirg-lavida-tiny-base --prune_method lavida-980

The figures of the card come from this command alone: scenes of split `test`, whose seeds training never saw.
"""

import argparse
import json
from pathlib import Path

from configuration_shirg import PRESETS
from modeling_shirg.adapters_shirg import RUN_FILE, read_run
from modeling_shirg.evaluation.calibrated_folder import with_calibration_section
from modeling_shirg.evaluation.held_out import answer_rows, exact_match_facts, scene_rows
from modeling_shirg.publishing.cards import render
from modeling_shirg.publishing.checkpoint import Checkpoint
from modeling_shirg.running.load import Loaded, load
from modeling_shirg.scenes import FAMILIES
from modeling_shirg.training.toy.recipe import TRAINING_FILE


def measured(loaded: Loaded, images: int) -> list[dict]:
    """Exact match by family and kind of question, with the image and without."""
    figures = []
    for family in FAMILIES:
        rows, blank = (scene_rows(family, "test", images, is_blank) for is_blank in (False, True))
        seen, unseen = (answer_rows(loaded.model, loaded.processor, each, 32) for each in (rows, blank))
        for fact in exact_match_facts(rows, seen, unseen):
            figure = {"family": family, "kind": fact["task"], "count": fact["n"], "accuracy": fact["value"]}
            shares = {"low": fact["low"], "high": fact["high"], "no_image": fact["baseline"]}
            figures.append({**figure, **shares, "majority": fact["majority"]})
    return figures


def main(argv: list[str] | None = None) -> None:
    """Measure, then write both files into the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--prune_method", choices=PRESETS, help="the system that is asked; by default its own")
    parser.add_argument("--images", type=int, default=600, help="held-out images per family, one question each")
    args = parser.parse_args(argv)
    training = json.loads((args.model / TRAINING_FILE).read_text())
    loaded = load(str(args.model), args.prune_method, device="cpu", dtype="float32")
    config, figures = loaded.model.config, measured(loaded, args.images)
    (args.model / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    card = render(
        "tiny",
        Checkpoint(str(args.model)),
        "apache-2.0",
        str(args.model),
        figures=figures,
        parameters=f"{loaded.model.num_parameters():,}",
        image_tokens=config.num_image_tokens,
        images=args.images,
        training=training,
        run=read_run(str(args.model / RUN_FILE)) if (args.model / RUN_FILE).exists() else None,
        system=config.prune_method,
        prune_method=args.prune_method,
        image="grid.png",
        question="What is in cell 5?",
    )
    (args.model / "README.md").write_text(with_calibration_section(str(card), config.calibration))


if __name__ == "__main__":
    main()
