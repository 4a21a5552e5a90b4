"""Put what a study made of the toy base into the package: the adapted model, merged, and its adapter.

    python -m modeling_shirg.training.toy.recipe --output_dir runs/tiny --export hub_card/shirg-lavida-tiny-base
    python -m modeling_shirg.training.toy.card --model hub_card/shirg-lavida-tiny-base --prune_method lavida-980
    shirg study --base hub_card/shirg-lavida-tiny-base --out runs/study
    python -m modeling_shirg.training.toy.bundle runs/study/adapters/shirg,seed-0
    python -m modeling_shirg.training.toy.card --model hub_card/shirg-lavida-tiny

Run it in a checkout: the adapter names its base by the folder there. It replaces `hub_card/shirg-lavida-tiny`, whose
weights are rounded to bfloat16 so that the package stays small, and `hub_card/shirg-lavida-tiny-lora`.
"""

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file

from modeling_shirg.publishing import base_fingerprint
from modeling_shirg.publishing.checkpoint import Checkpoint
from modeling_shirg.publishing.publications import open_run, run_publication
from modeling_shirg.training.toy.recipe import TRAINING_FILE, WEIGHTS_FILE

FOLDER = Path("hub_card")
MERGED, ADAPTER, BASE = (FOLDER / f"shirg-lavida-tiny{ending}" for ending in ("", "-lora", "-base"))
LICENCE = "apache-2.0"


def main(folder: Path) -> None:
    """Build both folders from the run in `folder`, then put them where the old ones are.

    Raises:
        ValueError: the run adapted another base than the one in the checkout, or that one is not here.
    """
    if not (BASE / TRAINING_FILE).is_file():
        raise ValueError(f"There is no {BASE / TRAINING_FILE}: run this in a checkout, after the recipe's --export.")
    run = open_run(folder, None)
    wanted, found = run.run["base_model"]["fingerprint"], base_fingerprint(BASE)
    if found != wanted:
        raise ValueError(
            f"The run adapted a base with fingerprint {wanted[:12]}, {BASE} has {found[:12]}: adapt the base that is "
            "there, or export the one that was adapted."
        )
    base = Checkpoint(str(BASE))
    with TemporaryDirectory(dir=FOLDER, prefix=".bundle-") as workshop:
        built = {}
        for target in (MERGED, ADAPTER):
            files, built[target] = Path(workshop, target.name, "files"), Path(workshop, target.name, "repository")
            files.mkdir(parents=True)
            publication = run_publication(run, folder, str(target), base, LICENCE, files, merge=target == MERGED)
            publication.write(built[target], str(target), "main")
        round_weights(built[MERGED] / WEIGHTS_FILE)
        shutil.copy(BASE / TRAINING_FILE, built[MERGED])
        for target, repository in built.items():
            if target.exists():
                shutil.rmtree(target)
            repository.rename(target)
            link_code(target)


def link_code(folder: Path) -> None:
    """Replace the code files that were saved beside the weights by relative links to their sources."""
    for file in folder.glob("*.py"):
        here = Path("configuration_shirg", file.name)
        source = here if here.is_file() else Path("modeling_shirg", file.name)
        file.unlink()
        file.symlink_to(Path("..", "..", source))


def round_weights(file: Path) -> None:
    """Store weights in bfloat16; the config still says in which type they are loaded."""
    save_file({name: value.bfloat16() for name, value in load_file(file).items()}, file, {"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
