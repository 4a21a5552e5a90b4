"""Publish a fine-tuned adapter, a merged model, a checkpoint or its position embeddings on the Hub.

    shirg push runs/charts me/lavida-charts                        # the adapter, for anyone who has the base
    shirg push runs/charts me/lavida-charts --base me/my-lavida    # trained on a folder: where its base is on the Hub
    shirg push runs/charts me/lavida-charts-merged --merge         # the whole model, the adapter merged into it
    shirg push runs/charts me/lavida-charts --checkpoint checkpoint-40     # of a run that did not finish
    shirg push my-lavida me/my-lavida --private                    # a checkpoint's folder
    shirg push my-lavida me/lavida-positions --position_embeddings
    shirg push runs/charts me/lavida-charts --dry_run out          # write what would be published, and publish nothing

The card is written from the report of the run: base model and commit, what was trained on which data, counts, results,
licence, limits. An adapter's base is compared with the weights that the run started from. Everything is published in
one commit, so a push that is interrupted changes nothing; a second one writes the first one's id into the examples of
the card. Log in with `hf auth login`, or set HF_TOKEN.
"""

import argparse
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="shirg push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="RUN_OR_FOLDER", help="folder of a training run or of a checkpoint")
    parser.add_argument("repo_id", metavar="REPO_ID", help="repository on the Hub, such as me/my-model")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--merge", action="store_true", help="publish the whole model with the adapter merged into it")
    what.add_argument(
        "--position_embeddings",
        action="store_true",
        help="publish the position embeddings for larger views alone, of a run, a checkpoint's folder or "
        "REPO_ID[@REVISION]",
    )
    parser.add_argument(
        "--base", metavar="REPO_ID[@REVISION]", help="where the run's base model is on the Hub, if it was a folder"
    )
    parser.add_argument("--licence", "--license", help="identifier of the licence; by default the base's own")
    parser.add_argument(
        "--private", action="store_true", help="only you see it; an existing repository has to be private"
    )
    parser.add_argument("--revision", metavar="BRANCH", help="branch to publish on, created if need be")
    parser.add_argument("--token", help="of the Hub; by default the one that you are logged in with")
    parser.add_argument(
        "--checkpoint", metavar="NAME", help="one of the run's checkpoints instead of what it chose when it finished"
    )
    parser.add_argument("--dry_run", type=Path, metavar="DIR", help="write it to this new folder instead")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Put it together, then publish it or write it down."""
    from tempfile import TemporaryDirectory

    from huggingface_hub.utils import httpx

    try:
        with TemporaryDirectory(prefix="shirg-push-") as workshop:
            print(_push(args, Path(workshop)))
    except httpx.TransportError as error:
        raise ConnectionError(
            f"The connection to the Hub failed ({error}). A push is one commit: {args.repo_id} is as it was, or "
            "complete."
        ) from error


def _push(args: argparse.Namespace, workshop: Path) -> str:
    """What was done, in a sentence."""
    from modeling_shirg.publishing.publish import prepare

    publication = prepare(
        args.source,
        args.repo_id,
        workshop,
        merge=args.merge,
        position_embeddings=args.position_embeddings,
        base=args.base,
        licence=args.licence,
        token=args.token,
        checkpoint=args.checkpoint,
    )
    files = f"{len(publication.files) + 1} files"
    if args.dry_run:
        publication.write(args.dry_run, args.repo_id, args.revision or "main")
        return f"{args.dry_run}: {files} for {args.repo_id}; nothing was published."
    commit = publication.push(args.repo_id, args.private, args.revision, args.token)
    return f"{args.repo_id}: {files} in commit {commit}"


if __name__ == "__main__":
    main(parse_args())
