"""Ask one question about every image of a folder, in batches, into a JSONL file; a second call continues the first.

    python scripts/examples/ask_folder.py hub_card/examples answers.jsonl "What color is the shape?"
    python scripts/examples/ask_folder.py photos answers.jsonl "What is written here?" --model me/my-lavida

A line is {"image": "a.png", "question": ..., "answer": "red"}, or {..., "error": "why it could not be read"}. In a
padded batch every image gets the answer that it gets alone.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

from tqdm.auto import tqdm

from configuration_shirg.image_reading_shirg import read_image
from modeling_shirg.running.ask import ask, conversation
from modeling_shirg.running.load import Loaded, load

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images, also in folders below it")
    parser.add_argument("out", type=Path, help="the JSONL file")
    parser.add_argument("question")
    parser.add_argument("--model", help="folder or Hub id; by default the bundled toy checkpoint")
    parser.add_argument("--batch_size", type=int, default=4)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Answer the images that have no line yet."""
    paths = sorted(path for path in args.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    names = [str(path.relative_to(args.folder)) for path in paths]
    if not names or args.batch_size < 1:
        raise SystemExit(f"{args.folder} holds {len(names)} images for batches of {args.batch_size}: nothing to ask.")
    done = finished(args.out, args.question)
    left = [name for name in names if name not in done]
    loaded = load(args.model)
    with args.out.open("a") as file, tqdm(total=len(names), initial=len(names) - len(left)) as bar:
        for start in range(0, len(left), args.batch_size):
            batch = left[start : start + args.batch_size]
            for record in answer(loaded, args.folder, batch, args.question):
                file.write(json.dumps({"question": args.question, **record}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(batch))


def finished(out: Path, question: str) -> set[str]:
    """The images that the file has a line for with this question; the unfinished line of a killed run is cut off."""
    if not out.exists():
        return set()
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        records = [json.loads(line) for line in whole.splitlines()]
        known = {record["image"] for record in records if record["question"] == question}
    except (ValueError, TypeError, KeyError):
        raise SystemExit(f"{out} holds lines that are no answers of this program: choose another file.") from None
    if not content[len(whole) :].startswith(b'{"question": "'[: len(content) - len(whole)]):
        raise SystemExit(f"{out} ends in what is no answer of this program: choose another file.")
    os.truncate(out, len(whole))
    return known


def answer(loaded: Loaded, folder: Path, names: list[str], question: str) -> Iterator[dict[str, str]]:
    """A record for each image."""
    images = {}
    for name in names:
        try:
            images[name] = read_image(folder / name)
        except ValueError as error:
            yield {"image": name, "error": str(error)}
    if images:
        answers = ask(loaded, [conversation(image, question) for image in images.values()])
        yield from ({"image": name, "answer": text} for name, text in zip(images, answers.texts, strict=True))


if __name__ == "__main__":
    main(parse_args())
