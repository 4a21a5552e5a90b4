"""Run code as a stranger would: in a new process that cannot import this project and has never seen the Hub.

An imported package hides what is missing from a saved folder, because its classes win over the folder's own code, and
a warm cache hides what is missing from a repository. Here neither is there.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BLOCKED = ("configuration_shirg", "modeling_shirg", "shirg_scripts", "shirg_hub_card")

# Python imports `sitecustomize` at start-up, in this process and in any it starts. The blocker goes to the front
# of the finders, ahead of the one that an editable install of this project leaves in site-packages.
_BLOCKER = f"""
import sys

class Blocker:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked in a fresh process", name=name)

sys.meta_path.insert(0, Blocker)
"""

# Loads by every Auto class, answers, and reports what the parent can compare.
_ASK = """
import json
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageTextToText,
                          AutoModelForMultimodalLM, AutoProcessor)

source, image, question, options = {arguments!r}
trust = dict(trust_remote_code=True)
config = AutoConfig.from_pretrained(source, **trust)
processor = AutoProcessor.from_pretrained(source, **trust)
image_processor = AutoImageProcessor.from_pretrained(source, **trust)
assert type(image_processor).__name__ == type(processor.image_processor).__name__
content = [dict(type="image", path=image), dict(type="text", text=question)]
chat = [dict(role="user", content=content)]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
reports = []
for auto in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    model = auto.from_pretrained(source, **trust).eval()
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    output = model.generate(**inputs, **options, return_dict_in_generate=True, output_selection=True)
    kept = None if output.kept_indices is None else output.kept_indices.tolist()
    answer = processor.post_process_image_text_to_text(output.sequences[:, inputs["input_ids"].shape[1] :])[0]
    reports.append(dict(ids=output.sequences[0].tolist(), kept=kept, tokens=config.num_image_tokens, answer=answer))
assert reports[0] == reports[1] == reports[2], reports
print(json.dumps(reports[0]))
"""

# Of the parent's environment, nothing that steers Python's imports or the Hugging Face libraries is handed on.
_DROPPED = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP")


def run_fresh(code: str, *, env: Mapping[str, str] | None = None) -> str:
    """Run Python code in a fresh process and return what it printed.

    The working directory is empty and is not on `sys.path`; `HF_HOME` is new and empty; the Hub is offline. `env` adds
    to the environment or overrides it: `hub.env` of a `LoopbackHub`, or an `HF_HOME` that two calls share. A
    `RuntimeError` holds the output of code that failed.
    """
    with tempfile.TemporaryDirectory(prefix="shirg-fresh-") as folder:
        root = Path(folder)
        for name in ("home", "site", "work"):
            (root / name).mkdir()
        (root / "site" / "sitecustomize.py").write_text(_BLOCKER)
        (root / "code.py").write_text(code)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
        clean = {
            "PYTHONPATH": str(root / "site"),
            "HF_HOME": str(root / "home"),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "2",
        }
        run = subprocess.run(
            [sys.executable, "-P", str(root / "code.py")],
            cwd=root / "work",
            env=kept | clean | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=300,
        )
    if run.returncode:
        raise RuntimeError(f"the fresh process failed with {run.returncode}\n{run.stdout}\n{run.stderr}")
    return run.stdout


def ask_fresh(
    source: Path | str, image: Path | str, question: str, *, env: Mapping[str, str] | None = None, **generation
) -> dict[str, Any]:
    """What a stranger is answered, the same by every Auto class: `ids` of prompt and answer, `answer`, `kept` patches,
    and `tokens`, the config's number of image tokens.
    """
    code = _ASK.format(arguments=(str(source), str(image), question, generation))
    return json.loads(run_fresh(code, env=env).strip().splitlines()[-1])
