"""Publish a training run, after looking at what would be published.

    python scripts/examples/publish.py runs/example/run me/my-model              # writes it to a folder, loads that
    python scripts/examples/publish.py runs/example/run me/my-model --publish    # and publishes it on the Hub

The model is loaded as a stranger would: by transformers alone, with the code that lies beside the weights. Without
--merge, `shirg push` publishes the adapter alone, for people who have the base.
"""

import argparse
import tempfile
from pathlib import Path

from transformers import pipeline

from shirg_scripts import cli

EXAMPLE = Path(__file__).parents[2] / "hub_card" / "examples" / "grid.png"


def main(args: argparse.Namespace) -> None:
    """Write, load, ask; then publish if asked to."""
    with tempfile.TemporaryDirectory() as workshop:
        folder = Path(workshop) / "published"
        push([args.run, args.repo_id, "--merge", "--dry_run", str(folder)])
        print(*sorted(path.name for path in folder.iterdir()))
        answers = pipeline("image-text-to-text", model=str(folder), trust_remote_code=True)
        content = [{"type": "image", "path": str(EXAMPLE)}, {"type": "text", "text": "What is in cell 5?"}]
        print(answers(text=[{"role": "user", "content": content}], return_full_text=False)[0]["generated_text"])
    if args.publish:
        push([args.run, args.repo_id, "--merge"])


def push(arguments: list[str]) -> None:
    """`shirg push`, with its own error if there is one."""
    if status := cli.main(["push", *arguments]):
        raise SystemExit(status)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a training run")
    parser.add_argument("repo_id", help="repository on the Hub, such as me/my-model")
    parser.add_argument("--publish", action="store_true", help="publish it; by default it is only tried")
    main(parser.parse_args())
