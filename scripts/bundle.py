"""Put what a study made of the toy base into the package: the adapted model, merged, and its adapter.

    python -m shirg_scripts.train_tiny --output_dir runs/tiny --export hub_card/shirg-lavida-tiny-base
    python -m shirg_scripts.card_tiny --model hub_card/shirg-lavida-tiny-base --prune_method lavida-980
    shirg study --base hub_card/shirg-lavida-tiny-base --out runs/study
    python -m shirg_scripts.bundle runs/study/adapters/shirg,seed-0
    python -m shirg_scripts.card_tiny --model hub_card/shirg-lavida-tiny

Run it in a checkout: the adapter names its base by the folder there. It replaces `hub_card/shirg-lavida-tiny`, whose
weights are rounded to bfloat16 so that the package stays small, and `hub_card/shirg-lavida-tiny-lora`.
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

FOLDER = Path("hub_card")
MERGED, ADAPTER, BASE = (FOLDER / f"shirg-lavida-tiny{ending}" for ending in ("", "-lora", "-base"))
LICENCE = "apache-2.0"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run that adapted the toy base")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Build both folders, then put them where the old ones are.

    Raises:
        ValueError: the run adapted another base than the one in the checkout, or that one is not here.
    """
    from modeling_shirg.publishing.checkpoint import Checkpoint
    from modeling_shirg.publishing.publications import open_run, run_publication
    from modeling_shirg.training.toy.recipe import TRAINING_FILE

    run = open_run(args.run, None)
    _check_base(run.run["base_model"]["fingerprint"], BASE / TRAINING_FILE)
    base = Checkpoint(str(BASE))
    with TemporaryDirectory(dir=FOLDER, prefix=".bundle-") as workshop:
        built = {}
        for folder in (MERGED, ADAPTER):
            files, built[folder] = Path(workshop, folder.name, "files"), Path(workshop, folder.name, "repository")
            files.mkdir(parents=True)
            publication = run_publication(run, args.run, str(folder), base, LICENCE, files, merge=folder == MERGED)
            publication.write(built[folder], str(folder), "main")
        _round_weights(built[MERGED] / "model.safetensors")
        shutil.copy(BASE / TRAINING_FILE, built[MERGED])
        for folder, repository in built.items():
            if folder.exists():
                shutil.rmtree(folder)
            repository.rename(folder)
            link_code(folder)
            print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()):,} bytes")


def link_code(folder: Path) -> None:
    """Replace the code files that were saved beside the weights by relative links to their sources."""
    for file in folder.glob("*.py"):
        here = Path("configuration_shirg", file.name)
        source = here if here.is_file() else Path("modeling_shirg", file.name)
        file.unlink()
        file.symlink_to(Path("..", "..", source))


def _check_base(wanted: str, training: Path) -> None:
    from modeling_shirg.publishing import base_fingerprint

    if not training.is_file():
        raise ValueError(f"There is no {training}: run this in a checkout, after train_tiny has exported the base.")
    found = base_fingerprint(training.parent)
    if found != wanted:
        raise ValueError(
            f"The run adapted a base with fingerprint {wanted[:12]}, {training.parent} has {found[:12]}: adapt the "
            "base that is there, or export the one that was adapted."
        )


def _round_weights(file: Path) -> None:
    """Store them in bfloat16; the config still says in which type they are loaded."""
    from safetensors.torch import load_file, save_file

    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file, {"format": "pt"})


if __name__ == "__main__":
    main(parse_args())
