"""Prove that a converted checkpoint computes what the original LaViDa computes, and write the table.

    python -m shirg_scripts.exactness --reference tests/fixtures/lavida --out docs/exactness.md

It converts the reference checkpoint with its vision base, runs every reference case in float32 on the CPU with one
thread, as the original was run, and compares. The exit status is 1 if a case failed.
"""

import argparse
import os
import platform
import re
import sys
import tempfile
import textwrap
from pathlib import Path

HEADER = """\
# Exactness against the original LaViDa

Written by `python -m shirg_scripts.exactness`; do not edit.

A checkpoint in the original's format with random weights (the full geometry at tiny widths) was converted by
`shirg convert` and compared with what the original code computed from it (jacklishufan/LaViDa at 284ef5c, transformers
4.50.3, CPU, float32). Errors of tensors are the largest difference over the reference's largest absolute
value; errors of ids and counts are the number of entries that differ.

{passed} of {total} cases pass. {machine}

| case | entries | largest error | tolerance | |
|---|---:|---:|---:|---|
"""

ADDED = """
## What SHIRG adds to the structure

The full-size model without these has exactly the original's names and shapes (a case above). A checkpoint that was
converted with `--vision_base` has them too, the text tower only with `--text_tower`:

"""

NOTES = """
## What the original does that you might not expect

All of this is reproduced for converted checkpoints, because their weights were trained with it.

- The token after `<image>` is dropped: "\\n" in LaViDa's own prompt. The chat template never writes it. A newline that
  you write after the image yourself is kept, so leave it out of prompts that you bring from the original.
- No id is suppressed: the mask token itself and ids beyond the vocabulary may be generated. The converted
  `generation_config.json` says so (`suppress_tokens: []`).
- Answers have a fixed length; the end-of-text token ends nothing.
- The whole view is squashed to a square, whatever the image's shape.
- With the prefix cache the prompt does not see the answer; without it, it does. These are two functions.
- Schedules are computed in float32; a float64 schedule fills other numbers of tokens.

## What differs, on purpose

- Pixels are those of Pillow 13, which made the reference, with every Pillow. 13 resizes the height first where it
  loses more than twice the pixels that the width does; older ones take the width first (12.2 and 12.3 but for images
  more than 100 times as high as wide), and the order changes pixels by up to 10 levels. The original gives what the
  installed Pillow gives.
- Padding is masked. The original ignores attention masks, so a padded row of a batch differs from the same row alone.
- In training the original fills spliced rows with zero embeddings that are attended; here they are masked. The case
  above feeds them by hand.
- Only float32 is compared: in bfloat16 the original rotates queries and keys in float32, Llama's module in bfloat16.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=Path("tests/fixtures/lavida"), help="the reference folder")
    parser.add_argument("--out", type=Path, help="write the table here (Markdown); by default to standard output")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> int:
    """Convert, compare, write; returns the exit status."""
    import torch

    from modeling_shirg.evaluation.exactness import added_parts, all_cases, convert_reference

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model, processor = convert_reference(args.reference, Path(folder) / "converted")
        cases = list(all_cases(model, processor, args.reference / "golden"))
    table = _table(cases, added_parts())
    if args.out is None:
        print(table)
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(table)
    return 0 if all(case.passed for case in cases) else 1


def _table(cases: list, parts: list) -> str:
    import PIL
    import torch
    import transformers

    machine = (
        f"Machine: {platform.machine()}, {platform.system()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Pillow {PIL.__version__}, one thread."
    )
    rows = [
        f"| {case.name} | {case.entries:,} | {case.error:.1e} | {case.tolerance:g} | "
        f"{'passes' if case.passed else '**fails**'} |"
        for case in cases
    ]
    header = HEADER.format(passed=sum(case.passed for case in cases), total=len(cases), machine=machine)
    return "\n".join([header + "\n".join(rows), ADDED + "\n".join(map(_added, parts)), NOTES])


def _added(part) -> str:
    """One item of the list of what is added; layers that look alike are written once."""
    names = list(part.shapes)
    prefix = os.path.commonprefix([name.rsplit(".", 1)[0] + "." for name in names]).rsplit(".", 1)[0] + "."
    layers = {int(number) for name in names for number in re.findall(r"layers\.(\d+)\.", name.removeprefix(prefix))}
    ends = dict.fromkeys(re.sub(r"layers\.\d+\.", "layers.N.", name.removeprefix(prefix)) for name in names)
    where = f" (N = {min(layers)}..{max(layers)})" if layers else ""
    count = f"{len(names)} tensor{'s' if len(names) > 1 else ''}, {part.parameters:,} parameters"
    listed = f"`{prefix}` + {', '.join(f'`{end}`' for end in ends)}{where}"
    text = f"{part.part}, {count}, in {' and '.join(part.presets)}: {listed}"
    return textwrap.fill(text, 118, initial_indent="- ", subsequent_indent="  ", break_long_words=False)


if __name__ == "__main__":
    sys.exit(main(parse_args()))
