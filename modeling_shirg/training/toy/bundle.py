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

MERGED, ADAPTER, BASE = (Path("hub_card", f"shirg-lavida-tiny{ending}") for ending in ("", "-lora", "-base"))


def main(folder: Path) -> None:
    """Replace both folders by what the run in `folder` makes of the base in this checkout."""
    run, base = open_run(folder), Checkpoint(str(BASE))
    wanted, found = run.run["base_model"]["fingerprint"], base_fingerprint(base)
    if found != wanted:
        raise ValueError(
            f"The run adapted a base with fingerprint {wanted[:12]}, {BASE} has {found[:12]}: adapt the base that is "
            "there, or export the one that was adapted."
        )
    for target in (MERGED, ADAPTER):
        with TemporaryDirectory() as files:
            merge = target == MERGED
            publication = run_publication(run, folder, str(target), base, "apache-2.0", Path(files), merge)
            shutil.rmtree(target, ignore_errors=True)
            publication.write(target, str(target), "main")
        for file in target.glob("*.py"):
            here = Path("configuration_shirg", file.name)
            source = here if here.is_file() else Path("modeling_shirg", file.name)
            file.unlink()
            file.symlink_to(Path("..", "..", source))
    weights = MERGED / WEIGHTS_FILE
    save_file({name: value.bfloat16() for name, value in load_file(weights).items()}, weights, {"format": "pt"})
    shutil.copy(BASE / TRAINING_FILE, MERGED)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
