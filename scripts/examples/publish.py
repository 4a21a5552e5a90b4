"""Publish a training run, after looking at what would be published.

    python scripts/examples/publish.py runs/example/run me/my-model              # writes it to a folder, loads that
    python scripts/examples/publish.py runs/example/run me/my-model --publish    # and publishes it on the Hub

The model is loaded as a stranger would: by transformers alone, with the code that lies beside the weights. It is
`shirg push --merge`; without --merge only the adapter is published, for those who have its base.
"""

import argparse
import tempfile
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

from shirg_scripts import cli

EXAMPLE = Path(__file__).parents[2] / "hub_card" / "examples" / "grid.png"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a training run")
    parser.add_argument("repo_id", help="repository on the Hub, such as me/my-model")
    parser.add_argument("--publish", action="store_true", help="publish it; by default it is only tried")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write, load, ask; then publish if asked to."""
    with tempfile.TemporaryDirectory() as workshop:
        folder = Path(workshop) / "published"
        push([args.run, args.repo_id, "--merge", "--dry_run", str(folder)])
        print(*sorted(path.name for path in folder.iterdir()))
        print(ask(folder, "What is in cell 5?"))
    if args.publish:
        push([args.run, args.repo_id, "--merge"])


def push(arguments: list[str]) -> None:
    """`shirg push`, which says what is wrong."""
    if status := cli.main(["push", *arguments]):
        raise SystemExit(status)


def ask(folder: Path, question: str) -> str:
    """The answer of the model in `folder`."""
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    content = [{"type": "image", "path": str(EXAMPLE)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    sequences = model.generate(**inputs)
    return processor.post_process_image_text_to_text(sequences[:, inputs["input_ids"].shape[1] :])[0]


if __name__ == "__main__":
    main(parse_args())
