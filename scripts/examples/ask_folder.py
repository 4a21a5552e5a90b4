"""Ask one question about every image of a folder, in batches, into a JSONL file; a second call continues the first.

    python scripts/examples/ask_folder.py hub_card/examples answers.jsonl "What color is the shape?"
    python scripts/examples/ask_folder.py photos answers.jsonl "What is written here?" --model me/my-lavida

A line is {"image": "a.png", "question": ..., "answer": "red"}, or {..., "error": "why it could not be read"}. Each
batch is on the disk before the next one starts; another question to the same file adds its own lines. In a padded
batch every image gets the answer that it gets alone.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from configuration_shirg import ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration

BUNDLED = Path(__file__).parents[2] / "hub_card" / "shirg-lavida-tiny"
BEGINNING = b'{"question": "'  # of every line
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="images, also in folders below it")
    parser.add_argument("out", type=Path, help="the JSONL file")
    parser.add_argument("question")
    parser.add_argument("--model", default=str(BUNDLED), help="folder or Hub id")
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Answer what is not answered yet."""
    if args.batch_size < 1:
        raise SystemExit(f"--batch_size {args.batch_size} must be 1 or more.")
    if not args.folder.is_dir():
        raise SystemExit(f"There is no folder {args.folder}.")
    names = sorted(
        str(path.relative_to(args.folder)) for path in args.folder.rglob("*") if path.suffix.lower() in SUFFIXES
    )
    if not names:
        raise SystemExit(f"{args.folder} holds no image: none of its files ends in {', '.join(sorted(SUFFIXES))}.")
    done = finished(args.out, args.question)
    left = [name for name in names if name not in done]
    model = ShirgLavidaForConditionalGeneration.from_pretrained(args.model).to(args.device).eval()
    processor = ShirgLavidaProcessor.from_pretrained(args.model)
    with args.out.open("a") as file, tqdm(total=len(names), initial=len(names) - len(left)) as bar:
        for start in range(0, len(left), args.batch_size):
            batch = left[start : start + args.batch_size]
            for record in answer(model, processor, args.folder, batch, args.question):
                file.write(json.dumps({"question": args.question, **record}) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(batch))


def finished(out: Path, question: str) -> set[str]:
    """The images that the file has a line for with this question; a killed run's unfinished line is cut off.

    A file that holds anything else is left as it is, and the program ends.
    """
    if not out.parent.is_dir():
        raise SystemExit(f"There is no folder {out.parent} to write {out.name} in.")
    if not out.exists():
        return set()
    if not out.is_file():
        raise SystemExit(f"{out} is no file to write answers to.")
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    begun = content[len(whole) :]
    try:
        records = [json.loads(line) for line in whole.splitlines()]
        known = {record["image"] for record in records if record["question"] == question}
    except (ValueError, TypeError, KeyError):
        raise SystemExit(f"{out} holds lines that are no answers of this program: choose another file.") from None
    if begun and not BEGINNING.startswith(begun[: len(BEGINNING)]):
        raise SystemExit(f"{out} ends in what is no answer of this program: choose another file.")
    os.truncate(out, len(whole))
    return known


@torch.no_grad()
def answer(model: Any, processor: Any, folder: Path, names: list[str], question: str) -> Iterator[dict[str, str]]:
    """A record for each image."""
    images, reader = {}, processor.image_processor
    for name in names:
        try:
            images[name] = reader.process_image(reader.fetch_images(folder / name))
        except ValueError as error:
            yield {"image": name, "error": str(error)}
    if not images:
        return
    chats = [chat(image, question) for image in images.values()]
    inputs = processor.apply_chat_template(
        chats,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    ).to(model.device)
    sequences = model.generate(**inputs)
    texts = processor.post_process_image_text_to_text(sequences[:, inputs["input_ids"].shape[1] :])
    for name, text in zip(images, texts, strict=True):
        yield {"image": name, "answer": text}


def chat(image: Image.Image, question: str) -> list[dict[str, Any]]:
    """One user turn."""
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


if __name__ == "__main__":
    main(parse_args())
