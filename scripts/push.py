"""Publish a fine-tuned adapter, a merged model, a checkpoint or its position embeddings on the Hub.

    shirg push runs/charts me/lavida-charts                        # the adapter, for anyone who has the base
    shirg push runs/charts me/lavida-charts --base me/my-lavida    # trained on a folder: where its base is on the Hub
    shirg push runs/charts me/lavida-charts-merged --merge         # the whole model, the adapter merged into it
    shirg push runs/charts me/lavida-charts --checkpoint checkpoint-40     # of a run that did not finish
    shirg push my-lavida me/my-lavida --private                    # a checkpoint's folder
    shirg push my-lavida me/lavida-positions --position_embeddings
    shirg push runs/charts me/lavida-charts --dry_run out          # write what would be published, and publish nothing

The card is written from the report of the run: base model and commit, training data, counts, results, licence, limits.
An adapter's base is compared with the weights that the run started from. A push is one commit; a second commit writes
the first one's id into the card. Log in with `hf auth login`, or set HF_TOKEN.
"""

import argparse
import os
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .arguments import CommandParser

    parser = CommandParser("shirg push", __doc__)
    parser.add_argument("source", metavar="RUN_OR_FOLDER", help="folder of a training run or of a checkpoint")
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository on the Hub, such as me/my-model")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--merge", action="store_true", help="publish the whole model with the adapter merged into it")
    what.add_argument(
        "--position_embeddings",
        action="store_true",
        help="publish the position embeddings for larger views, of a checkpoint's folder or REPO_ID[@REVISION]",
    )
    parser.add_argument(
        "--base", metavar="REPO_ID[@REVISION]", help="where the run's base model is on the Hub, if it was a folder"
    )
    parser.add_argument("--licence", "--license", help="identifier of the licence; by default the base's own")
    parser.add_argument("--private", action="store_true", help="an existing repository has to be private already")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to publish on, created if need be")
    parser.add_argument("--token", help="of the Hub; by default the one that you are logged in with")
    parser.add_argument(
        "--checkpoint", metavar="NAME", help="one of the run's checkpoints instead of its last weights"
    )
    parser.add_argument("--dry_run", type=Path, metavar="DIR", help="write it to this new folder instead")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Put the publication together, then publish it or write it down."""
    from tempfile import TemporaryDirectory

    from huggingface_hub.utils import httpx

    if args.token:
        os.environ["HF_TOKEN"] = args.token
    try:
        with TemporaryDirectory(prefix="shirg-push-") as workshop:
            publication = _publication(args, Path(workshop))
            files = f"{len(publication.files) + 1} files"
            if args.dry_run:
                publication.write(args.dry_run, args.repo_id, args.revision or "main")
                print(f"{args.dry_run}: {files} for {args.repo_id}; nothing was published.")
            else:
                commit = publication.push(args.repo_id, args.private, args.revision)
                print(f"{args.repo_id}: {files} in commit {commit}")
    except httpx.TransportError as error:
        raise ConnectionError(
            f"The connection to the Hub failed ({error}): {args.repo_id} is as it was, or complete."
        ) from error


def _publication(args: argparse.Namespace, workshop: Path):
    """What the command line means."""
    from modeling_shirg.adapters_shirg import ADAPTER_CONFIG, RUN_FILE
    from modeling_shirg.publishing.checkpoint import Checkpoint
    from modeling_shirg.publishing.publications import (
        checkpoint_publication,
        open_run,
        positions_publication,
        run_publication,
    )

    folder = Path(args.source)
    is_model = (folder / "config.json").is_file()
    is_run = (folder / ADAPTER_CONFIG).is_file() or (not is_model and (folder / RUN_FILE).is_file())
    if args.position_embeddings and not is_run:
        _refuse(args, "base", "checkpoint")
        return positions_publication(Checkpoint.find(args.source), args.repo_id, args.licence, workshop)
    if is_run == is_model:
        which = f"both {ADAPTER_CONFIG} and" if is_run else f"neither {ADAPTER_CONFIG} nor"
        raise ValueError(f"{folder} has {which} config.json: give the folder of a run, or of a model.")
    if is_model:
        _refuse(args, "base", "merge", "checkpoint")
        return checkpoint_publication(folder, args.repo_id, args.licence)
    _refuse(args, "position_embeddings")
    run = open_run(folder, args.checkpoint)
    base = _base(run.run["base_model"], args)
    return run_publication(run, folder, args.repo_id, base, args.licence, workshop, merge=args.merge)


def _refuse(args: argparse.Namespace, *names: str) -> None:
    given = [f"--{name}" for name in names if getattr(args, name)]
    if given:
        raise ValueError(f"{', '.join(given)} has no meaning for {args.source}: see shirg push --help.")


def _base(trained_on: dict, args: argparse.Namespace):
    """The base model of a run, where the publication finds it: the same weights as the run's."""
    from modeling_shirg.publishing.checkpoint import Checkpoint, base_fingerprint

    name, revision = trained_on["name_or_path"], trained_on["revision"]
    source = args.base or (name if revision is None else f"{name}@{revision}")
    if not args.merge and (Path(source).is_absolute() or Path(source).is_dir()):
        raise ValueError(
            f"The base is a local folder, {source}, from which nobody else can load it. Push that folder (`shirg push "
            "FOLDER REPO_ID`), then name it: --base REPO_ID. Or publish the merged model: --merge."
        )
    base = Checkpoint.find(source)
    wanted, found = trained_on["fingerprint"], base_fingerprint(base)
    if wanted not in (None, found):
        raise ValueError(
            f"{base.name} has other weights than the run was trained on (fingerprint {found[:12]}, the run's is "
            f"{wanted[:12]}): name the right base with --base REPO_ID@REVISION."
        )
    return base
