"""Train the base of the checkpoint that this package ships, on images that it renders.

    python -m shirg_scripts.train_tiny --output_dir runs/tiny    # hours on 2 CPU cores; resumes
    python -m shirg_scripts.train_tiny --output_dir runs/tiny --export hub_card/shirg-lavida-tiny-base

Four stages, each with its own folder under `output_dir`. A finished stage is skipped, an unfinished one resumes from
its last checkpoint; a stage that was made with other settings ends the run with an error.

  see     the vision tower and its pooling head, dense targets on rendered scenes (modeling_shirg/training/dense.py)
  sharpen the same with a warm restart and a smaller batch, on the scenes that follow
  read    projector and language model with the tower frozen, LaViDa's five views, several questions packed behind one
          image (modeling_shirg/training/packed.py, guides.py); logs the exact match per family of fully masked
          answers, on each batch before it learns from it
  practise the same on the images that follow, more grids to count in, and a warm restart at half the learning rate

`shirg study` adapts this base to every system, scripts/bundle.py puts what it made for `shirg` into the package.
A machine with a GPU uses it. Rendering takes matplotlib's fonts: pip install 'shirg-lavida[eval]'.
"""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class ScriptArguments:
    """What to train and where."""

    output_dir: str = field(metadata={"help": "Folder of the stages' checkpoints."})
    export: str | None = field(default=None, metadata={"help": "Write the finished Hub folder here."})
    start: str | None = field(
        default=None,
        metadata={
            "help": "Folder of a stage `see` or `sharpen` whose weights stage `see` starts from; else random ones."
        },
    )
    see_images: int = field(default=120_000, metadata={"help": "Rendered scenes of stage `see`."})
    sharpen_images: int = field(default=60_000, metadata={"help": "Rendered scenes of stage `sharpen`."})
    read_images: int = field(default=60_000, metadata={"help": "Images (4 questions each) of stage `read`."})
    practise_images: int = field(default=24_000, metadata={"help": "Images of stage `practise`."})
    num_workers: int = field(default=1, metadata={"help": "Processes that render images."})
    save_steps: int = field(default=200, metadata={"help": "Steps between two checkpoints of a stage."})
    compile: bool = field(default=False, metadata={"help": "Run the training step under torch.compile."})
    seed: int = field(default=0, metadata={"help": "Seed of the initial weights, and of what is masked."})


def main(args: ScriptArguments) -> None:
    """Run the stages that are not finished, then export if asked to."""
    import logging

    import torch

    from modeling_shirg.training.toy.recipe import export, train_practise, train_read, train_see, train_sharpen

    torch.set_flush_denormal(True)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("modeling_shirg").setLevel(logging.INFO)
    root = Path(args.output_dir)
    train_see(root / "see", args)
    train_sharpen(root / "sharpen", root / "see", args)
    train_read(root / "read", root / "sharpen", args)
    train_practise(root / "practise", root / "read", args)
    if args.export:
        export(root / "practise", root / "sharpen", Path(args.export))


def parse_args(argv: list[str] | None = None) -> ScriptArguments:
    """Read the command line."""
    from transformers import HfArgumentParser

    return HfArgumentParser(ScriptArguments).parse_args_into_dataclasses(args=argv)[0]


if __name__ == "__main__":
    main(parse_args())
