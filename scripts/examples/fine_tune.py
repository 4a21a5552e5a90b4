"""Fine-tune on rows of your own: write them down, train an adapter, ask it.

    python scripts/examples/fine_tune.py --output_dir runs/example
    python scripts/examples/fine_tune.py --output_dir runs/example --rows my-rows.jsonl --max_steps 500

A line of the rows is {"image": "page.png", "question": "What is the total?", "answer": "12.50"}; images lie beside the
file. Without --rows it writes rendered ones. It is `shirg train`, which takes much more: see scripts/configs/.
"""

import argparse
import json
from pathlib import Path

from modeling_shirg.running.ask import answer_question, read_image
from modeling_shirg.running.load import load
from modeling_shirg.running.timing import StageClock
from modeling_shirg.scenes import scene
from shirg_scripts import cli


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--rows", type=Path, help="a JSONL file; by default rendered rows are written")
    parser.add_argument("--max_steps", type=int, default=40)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--model", help="by default the bundled toy checkpoint")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Train, then ask the base and the adapter the first question."""
    rows = args.rows or write_rows(args.output_dir / "rows", 64)
    command = ["train", "--data", str(rows), "--output_dir", str(args.output_dir / "run")]
    command += ["--max_steps", str(args.max_steps), "--warmup_steps", "2", "--learning_rate", "5e-4"]
    size = str(args.batch_size)
    command += ["--effective_batch_size", size, "--per_device_train_batch_size", size, "--logging_steps", "1"]
    command += ["--validation_rows", "8", "--eval_steps", str(args.max_steps), "--save_steps", str(args.max_steps)]
    command += ["--activation_checkpointing", "false", "--dataloader_num_workers", "0"]
    command += ["--model", args.model] if args.model else []
    if status := cli.main(command):
        raise SystemExit(status)
    row = json.loads(rows.read_text().splitlines()[0])
    print(f"{row['question']} {row['answer']}")
    for name in (args.model, str(args.output_dir / "run")):
        loaded = load(name)
        image = read_image(loaded, str(rows.parent / row["image"]))
        print(f"{loaded.name}: {answer_question(loaded, image, row['question'], StageClock()).text}")


def write_rows(folder: Path, count: int) -> Path:
    """Rendered grids with a question each, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w") as file:
        for index in range(count):
            drawn = scene("entity_grid", "train", index)
            drawn.image.save(folder / f"{index}.png")
            question = drawn.questions[index % len(drawn.questions)]
            row = {"image": f"{index}.png", "question": question.text, "answer": question.answer}
            file.write(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


if __name__ == "__main__":
    main(parse_args())
