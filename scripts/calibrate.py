"""Measure on labelled boxes whether what selection rates high is where the answer is, and correct what is not.

    shirg calibrate
    shirg calibrate --model my-lavida --prune_method shirg --data boxes.jsonl --out my-lavida-calibrated
    shirg calibrate --model my-lavida --prune_method shirg-3645 --data boxes.jsonl --in_place

DATA has one {"image": path, "question": str, "box": [left, top, right, bottom]} per line, the box in pixels of the
upright image; without it the package renders scenes of its own, which is enough for the bundled toy checkpoint alone
and takes matplotlib's fonts: pip install 'shirg-lavida[eval]'. One half of the images decides, the other reports.

Two corrections may come of it: the sign of the text relevance s, and a mean that is subtracted from the attention a at
each position of the views of --prune_method. Without --out or --in_place nothing is written.
"""

import argparse
import json
import sys
from pathlib import Path

_RENDERED = 400


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .arguments import CommandParser, add_model_arguments, add_system_arguments

    parser = CommandParser("shirg calibrate", __doc__)
    add_model_arguments(parser)
    add_system_arguments(parser)
    parser.add_argument("--data", type=Path, metavar="BOXES.jsonl", help="labelled boxes; by default rendered scenes")
    parser.add_argument(
        "--images", type=int, metavar="N", help=f"how many images; by default all of DATA, or {_RENDERED} scenes"
    )
    parser.add_argument(
        "--subtract_mean",
        choices=("if_better", "always", "never"),
        default="if_better",
        help="subtract the mean of the attention where it raises the AUC (default), in any case, or never",
    )
    written = parser.add_mutually_exclusive_group()
    written.add_argument("--out", type=Path, metavar="FOLDER", help="write a calibrated copy of the checkpoint here")
    written.add_argument("--in_place", action="store_true", help="write config.json and README.md of --model anew")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Look, decide, report, and write where that is asked for."""
    from tqdm.auto import tqdm
    from transformers.utils import logging

    from modeling_shirg.evaluation.calibrated_folder import (
        calibration_table,
        write_calibrated_copy,
        write_calibration,
    )
    from modeling_shirg.evaluation.calibration import calibration_of, look, readable_signals, text_relevances
    from modeling_shirg.evaluation.labelled_boxes import read_boxes, rendered_boxes
    from modeling_shirg.running.files import check_free
    from modeling_shirg.running.load import checkpoint_folder, load

    logging.disable_progress_bar()
    if args.images is not None and args.images < 1:
        raise ValueError(f"--images {args.images}: give a number of images above 0.")
    if args.in_place and (args.model is None or not Path(args.model).is_dir()):
        raise ValueError(f"--in_place needs --model FOLDER, a folder on this machine; got {args.model}. Or use --out.")
    if args.out:
        check_free(args.out)
    number = args.images or _RENDERED
    data = f"{number} rendered scenes"
    boxes = rendered_boxes(number)
    if args.data:
        boxes = read_boxes(args.data, args.images)
        number, data = len(boxes), args.data.name
    loaded = load(args.model, args.prune_method, args.device, args.dtype, args.text_relevance, revision=args.revision)
    config = loaded.model.config
    folder = checkpoint_folder(args.model, args.revision) if args.out or args.in_place else None
    if folder is not None and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, which a calibration is written to: name a whole checkpoint.")
    print(f"Model: {loaded.name}, system: {config.prune_method}", file=sys.stderr)
    readable_signals(config)
    sources = text_relevances(loaded.model, loaded.processor) if args.text_relevance is None else ()
    if args.text_relevance not in (None, "none"):
        sources = (args.text_relevance,)
    progress = tqdm(boxes, desc="Looking", total=number, file=sys.stderr)
    seen, unseen = look(loaded.model, loaded.processor, progress, sources)
    calibration = calibration_of(seen, config, data, args.subtract_mean)
    print(calibration_table(calibration))
    if unseen:
        print(f"{unseen} of {number} boxes are left out: no view shows both patches inside and outside of them.")
    if args.out:
        write_calibrated_copy(folder, args.out, calibration)
    elif args.in_place:
        write_calibration(folder, calibration)
    written = args.out or folder
    print(f"Written to {written}" if written else "Nothing was written: give --out FOLDER or --in_place.")
    if args.json:
        report = {"prune_method": config.prune_method, "calibration": calibration, "left_out": unseen}
        print(json.dumps({**report, "written": None if written is None else str(written)}))
