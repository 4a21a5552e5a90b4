"""Train the checkpoint that this package ships, from nothing, on images that it renders.

    python -m shirg_scripts.train_tiny --output_dir runs/tiny    # hours on 2 CPU cores, minutes on a GPU; resumes
    python -m shirg_scripts.train_tiny --output_dir runs/tiny --export hub_card/shirg-lavida-tiny

Four stages, each with its own folder under `output_dir`. A finished stage is skipped, an unfinished one resumes from
its last checkpoint; where seed or number of images are not those that it was started with, the run ends with an error.

  see     the vision tower and its pooling head, dense targets on rendered pages (modeling_shirg/training/dense.py)
  sharpen the same with a warm restart and a smaller batch, on new pages
  read    the language model with the tower frozen, several questions packed behind one image (training/packed.py)
  answer  the same in the exact form of inference: one question per sequence, question-aware selection
The last two log the exact match per family of fully masked answers, on each batch before they learn from it; the
figures of the card are measured apart, by card_tiny.py. A machine with a GPU uses it. Rendering takes matplotlib's
fonts: pip install 'shirg-lavida[eval]'.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ScriptArguments:
    """What to train and where."""

    output_dir: str = field(metadata={"help": "Folder of the stages' checkpoints."})
    export: str | None = field(default=None, metadata={"help": "Write the finished Hub folder here."})
    see_images: int = field(default=80_000, metadata={"help": "Rendered pages of stage `see`."})
    sharpen_images: int = field(default=36_000, metadata={"help": "Rendered pages of stage `sharpen`."})
    read_images: int = field(default=36_000, metadata={"help": "Images (6 questions each) of stage `read`."})
    answer_images: int = field(default=8_000, metadata={"help": "Images (1 question each) of stage `answer`."})
    num_workers: int = field(default=1, metadata={"help": "Processes that render images."})
    save_steps: int = field(default=200, metadata={"help": "Steps between two checkpoints of a stage."})
    compile: bool = field(default=True, metadata={"help": "Run the training step under torch.compile."})
    seed: int = field(default=0, metadata={"help": "Seed of the initial weights."})


def main(args: ScriptArguments) -> None:
    """Run the stages that are not finished, then export if asked to."""
    import logging

    from modeling_shirg.training.tiny import export, train_answer, train_read, train_see, train_sharpen

    logging.basicConfig(format="%(message)s")
    logging.getLogger("modeling_shirg").setLevel(logging.INFO)
    root = Path(args.output_dir)
    train_see(root / "see", args)
    train_sharpen(root / "sharpen", root / "see", args)
    train_read(root / "read", root / "sharpen", args)
    train_answer(root / "answer", root / "read", args)
    if args.export:
        export(root / "answer", Path(args.export))


def parse_args(argv: list[str] | None = None) -> ScriptArguments:
    """Read the command line."""
    from transformers import HfArgumentParser

    return HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(args=argv)[0]


if __name__ == "__main__":
    main(parse_args())
