"""Fine-tune on rows of your own: write them down, train an adapter, ask it.

    python scripts/examples/fine_tune.py runs/example
    python scripts/examples/fine_tune.py runs/example --rows my-rows.jsonl --max_steps 500

A line of the rows is {"image": "page.png", "question": "What is the total?", "answer": "12.50"}; images lie beside the
file. Without --rows rendered ones are written. `shirg train` takes much more: see scripts/configs/.
"""

import argparse
import json
from pathlib import Path

from modeling_shirg.running.ask import ask, conversation
from modeling_shirg.running.load import load
from modeling_shirg.scenes import scene
from shirg_scripts import cli


def main(args: argparse.Namespace) -> None:
    """Train, then ask the base and the adapter the first question."""
    rows = args.rows or write_rows(args.folder / "rows", 64)
    run, steps = str(args.folder / "run"), str(args.max_steps)
    command = ["train", "--data", str(rows), "--output_dir", run, "--max_steps", steps, "--warmup_steps", "2"]
    command += ["--effective_batch_size", "8", "--per_device_train_batch_size", "8", "--learning_rate", "5e-4"]
    command += [
        "--validation_rows",
        "8",
        "--eval_steps",
        steps,
        "--save_steps",
        steps,
        "--dataloader_num_workers",
        "0",
    ]
    if status := cli.main(command):
        raise SystemExit(status)
    row = json.loads(rows.read_text().splitlines()[0])
    print(f"{row['question']} {row['answer']}")
    for model in (None, run):
        answers = ask(load(model), [conversation(str(rows.parent / row["image"]), row["question"])])
        print(f"{model or 'base'}: {answers.texts[0]}")


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path, help="a JSONL file; by default rendered rows are written")
    parser.add_argument("--max_steps", type=int, default=40)
    main(parser.parse_args())
