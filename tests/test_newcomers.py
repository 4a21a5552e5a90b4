"""The three ways into the README, each pasted into a shell as it stands there, but for the names in `STAND_INS`."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loopback_hub import LoopbackHub

ROOT = Path(__file__).parents[1]
LAVIDA = ROOT / "tests" / "fixtures" / "lavida"
# What takes a download, an accelerator or minutes, and what takes its place here.
STAND_INS = {
    "jacklishufan/lavida-llada-v1.0-instruct": str(LAVIDA / "checkpoint"),
    "google/siglip-so400m-patch14-384": str(LAVIDA / "tiny-siglip-so400m-patch14-384"),
    "photo.jpg": "hub_card/examples/document.png",
    " --device cuda": "",
    "me/": "tester/",
    "--output_dir runs/tiny-lora": "--output_dir runs/tiny-lora --max_steps 2 --warmup_steps 1 --logging_steps 1 "
    "--eval_steps 1 --save_steps 1 --then_evaluate false --data synthetic:entity_grid,rows=64 --validation_rows 20",
}


def _first_commands(heading: str) -> str:
    """The `shirg` commands of the first block that has some under a heading of the README."""
    section = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    block = next(block for block in blocks if block.startswith("shirg ") or "\nshirg " in block)
    return "".join(line + "\n" for line in block.splitlines() if line.startswith("shirg "))


@pytest.mark.parametrize(
    ("heading", "made"),
    [
        ("Try it", "kept.png"),
        ("Use your LaViDa checkpoint", "my-lavida/model.safetensors"),
        pytest.param("Fine-tune and publish", "runs/tiny-lora/adapter_model.safetensors", marks=pytest.mark.slow),
    ],
)
def test_the_way_of(heading, made, tmp_path):
    script = _first_commands(heading)
    assert 1 <= script.count("\n") <= 9
    for name, stand_in in STAND_INS.items():
        script = script.replace(name, stand_in)
    shutil.copytree(ROOT / "hub_card" / "examples", tmp_path / "hub_card" / "examples")
    shutil.copytree(ROOT / "scripts" / "configs", tmp_path / "scripts" / "configs")
    with LoopbackHub() as hub:
        commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        env = {**os.environ, **hub.env, "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "hf"), "PATH": commands}
        run = subprocess.run(
            ["bash", "-e", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900
        )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout.strip().splitlines()[-1].strip() and (tmp_path / made).stat().st_size > 0
