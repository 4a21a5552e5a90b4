"""`shirg push` to a Hub on 127.0.0.1 and back, by people who have nothing but the card."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import load_file, save_file

from adapter_runs import (
    POSITIONS,
    WITH_ATTENTION,
    change_report,
    copy_folder,
    save_base,
    save_run,
)
from child_process import fork, kill_when
from command_runs import contents
from fresh_process import run_fresh
from loopback_hub import metadata_errors
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.publishing.publications import publishable
from shirg_scripts.cli import main
from tiny_model import QUESTIONS, noise_image, tiny_config, tiny_model

# huggingface_hub's own, when it uploads a large file.
pytestmark = pytest.mark.filterwarnings("default:Use 'content=:DeprecationWarning")

BUNDLED = Path(__file__).parents[1] / "hub_card" / "shirg-lavida-tiny"
COMMIT = "[0-9a-f]{40}"
ADAPTER_FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "calibration_shirg.py",
    "chat_template.jinja",
    "configuration_shirg_lavida.py",
    "geometry_shirg.py",
    "image_processing_shirg_lavida.py",
    "image_reading_shirg.py",
    "presets_shirg.py",
    "processing_shirg_lavida.py",
    "processor_config.json",
    "run.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base") / "my-base")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run under another system than its base's, so that a loader who ignores it is found out."""
    system = {"prune_method": "shirg-v1", "selection_budget": 100}
    return save_run(tmp_path_factory.mktemp("runs") / "charts", base, WITH_ATTENTION, [POSITIONS], **system)


@pytest.fixture
def online(hub, monkeypatch):
    """This process talks to `hub`: what the environment says was read when huggingface_hub was imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    for name in ("HF_TOKEN", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, hub.env[name])
    return hub


def push(*words) -> None:
    assert main(["push", *map(str, words)]) == 0


def refused(capsys, *words) -> str:
    """What a push that is refused says."""
    assert main(["push", *map(str, words)]) == 2
    return capsys.readouterr().err


def card_of(hub, repo_id: str, revision: str = "main") -> str:
    return hub.files(repo_id, revision=revision)["README.md"].decode()


def code_of(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def pinned(card: str) -> str:
    """The commit that the card's examples name."""
    (commit,) = set(re.findall(rf'^revision = "({COMMIT})"$', card, flags=re.MULTILINE))
    return commit


# An adapter


@pytest.fixture
def published(online, base, run):
    """The base, and the run's adapter on a branch."""
    push(base, "tester/base", "--licence", "apache-2.0")
    push(run.folder, "tester/charts", "--base", "tester/base", "--revision", "v2", "--private")
    return online


STRANGER = """
import os
os.chdir({work!r})
import torch
from safetensors.torch import save_file
{card}
model.eval()
logits = dict()
with torch.no_grad():
    logits["peft"] = model(**inputs).logits
auto = AutoModelForImageTextToText.from_pretrained(
    source, revision=base_revision, adapter_kwargs=dict(revision=revision), trust_remote_code=True
)
with torch.no_grad():
    logits["auto"] = auto(**inputs).logits
    logits["branch"] = AutoModelForImageTextToText.from_pretrained(
        source, adapter_kwargs=dict(revision="v2"), trust_remote_code=True
    )(**inputs).logits
    logits["class"] = type(auto).from_pretrained(source, revision="v2")(**inputs).logits
assert type(auto).__module__.startswith("transformers_modules."), type(auto)
assert inputs["input_ids"].eq(auto.config.image_token_id).sum() == auto.config.num_image_tokens == 164
save_file(logits, "logits.safetensors")
for wrong in ("siglip-672",):
    try:
        AutoModelForImageTextToText.from_pretrained(
            source, adapter_kwargs=dict(revision=revision), trust_remote_code=True, prune_method=wrong
        )
    except ValueError as error:
        assert "16x16 positions, this model's is of 24x24" in str(error), error
    else:
        raise AssertionError("another grid was taken")
"""

OFFLINE = """
import os
os.chdir({work!r})
from safetensors.torch import load_file
import torch
{card}
with torch.no_grad():
    assert torch.equal(model(**inputs).logits, load_file("logits.safetensors")["auto"])
"""


def test_a_stranger_loads_the_adapter_by_its_card_alone_and_again_offline(published, run, tmp_path):
    noise_image(5).save(tmp_path / "photo.png")
    card = card_of(published, "tester/charts", "v2")
    assert pinned(card) in published.repos["models", "tester/charts"].commits
    code = [block.replace("Describe the image in detail.", QUESTIONS[0]) for block in code_of(card)]
    home = {"HF_HOME": str(tmp_path / "home")}
    run_fresh(STRANGER.format(work=str(tmp_path), card="\n".join(code)), env=published.env | home)
    for name, logits in load_file(tmp_path / "logits.safetensors").items():
        assert torch.equal(logits, run.logits), name
    offline = home | {"HF_HUB_OFFLINE": "1"}
    run_fresh(OFFLINE.format(work=str(tmp_path), card=code[0]), env=offline)


@pytest.mark.slow
def test_the_pipeline_and_the_command_take_the_adapter_from_the_hub(online, base, run, tmp_path):
    push(base, "tester/base")
    push(run.folder, "tester/charts", "--base", "tester/base")
    noise_image(5).save(tmp_path / "photo.png")
    code = f"""
from transformers import pipeline
ask = pipeline("image-text-to-text", model="tester/charts", processor="tester/charts", trust_remote_code=True)
assert ask.model.config.num_image_tokens == 164
content = [{{"type": "image", "path": {str(tmp_path / "photo.png")!r}}}, {{"type": "text", "text": "Which?"}}]
chat = [{{"role": "user", "content": content}}]
print(repr(ask(text=chat, max_new_tokens=8, return_full_text=False)[0]["generated_text"].strip()))
"""
    answer = run_fresh(code, env=online.env).strip().splitlines()[-1]
    words = ["ask", str(tmp_path / "photo.png"), "Which?", "--model", "tester/charts", "--revision", "main"]
    asked = subprocess.run(
        [sys.executable, "-m", "shirg_scripts.cli", *words, "--max_new_tokens", "8"],
        env=os.environ | online.env | {"HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert asked.returncode == 0, asked.stderr
    assert repr(asked.stdout.strip("\n")) == answer


def test_the_adapter_repository_names_its_base_and_holds_nothing_of_this_machine(published, run, base):
    files = published.files("tester/charts", revision="v2")
    assert files.keys() == ADAPTER_FILES | {".gitattributes", ".eval_results/shirg.yaml"}
    head = published.repos["models", "tester/base"].branches["main"]
    config = json.loads(files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == ("tester/base", head)
    report = json.loads(files["run.json"])
    assert report["base_model"] == run.report["base_model"] | {"name_or_path": "tester/base", "revision": head}
    assert report["command"] == "shirg train --model my-base --hub_token *** --output_dir charts"
    changed = {"base_model", "command", "data"}
    assert {n: v for n, v in report.items() if n not in changed} == {
        n: v for n, v in run.report.items() if n not in changed
    }
    for name, content in files.items():
        if not name.endswith(".py"):
            assert b"hf_very" not in content and b"/data/ada" not in content, name
            assert str(base.parent).encode() not in content, name
    assert not hasattr(published.repos["models", "tester/charts"], "public")
    assert published.repos["models", "tester/charts"].private
    assert not published.repos["models", "tester/base"].private


def test_the_card_says_what_the_report_says(published, run):
    card = card_of(published, "tester/charts", "v2")
    report = json.loads(published.files("tester/charts", revision="v2")["run.json"])
    data = ModelCard(card).data
    assert metadata_errors(data.to_dict()) == []
    assert (data.base_model, data.base_model_relation, data.license) == ("tester/base", "adapter", "apache-2.0")
    assert {"custom_code", "lora", "peft", "shirg"} <= set(data.tags)
    found = [(result.dataset_type, result.metric_type, result.metric_value) for result in data.eval_results]
    assert found == [("charts", "exact_match", 0.625), ("lmms-lab/ChartQA", "relaxed_accuracy", 0.375)]
    said = [
        f"`{report['base_model']['revision']}`",
        "| system | `shirg-v1`, `selection_budget=100` |",
        "num_image_tokens 164",
        "| footprint | `charts`, LoRA rank 4, alpha 8 |",
        f"| trained weights | {report['trainable']['total']:,} (1.25% of the base's) |",
        "| `model.multi_modal_projector.linear_2` | 1,251 |",
        "| rows:charts.jsonl | charts.jsonl | 0.75 | 4,321 | 17 |",
        "| tester/scenes | tester/scenes, config=DocVQA | 0.25 | 1,234 | 0 |",
        "| steps, epochs, effective batch | 240, 1.5, 16 |",
        "| best step, validation loss, training loss | 180, 1.234, 1.346 |",
        "| charts | exact_match | 0.625 | 0.591 to 0.658 | 808 | - | - |",
        "| ChartQA | relaxed_accuracy | 0.375 | 0.356 to 0.394 | 2,500 | - | - |",
        "| seed | 7 |",
        "torch 2.13.0",
        "processes 2",
        "Toy-scale: views of 192 pixels",
        report["base_model"]["fingerprint"],
        "licence `apache-2.0`",
    ]
    assert [each for each in said if each not in card] == []
    (entry,) = parse_eval_result_entries(
        yaml.safe_load(published.files("tester/charts", revision="v2")[".eval_results/shirg.yaml"])
    )
    assert (entry.dataset_id, entry.task_id, entry.value) == ("lmms-lab/ChartQA", "ChartQA", 0.375)


def test_every_trust_in_a_card_is_pinned(published, run, base, tmp_path):
    push(run.folder, "tester/merged", "--merge")
    push(BUNDLED, "tester/bundled")
    push(base, "tester/positions", "--position_embeddings")
    repos = {"tester/charts": "v2", "tester/base": "main", "tester/merged": "main", "tester/bundled": "main"}
    for repo_id, branch in {**repos, "tester/positions": "main"}.items():
        card = card_of(published, repo_id, branch)
        calls = re.findall(r"from_pretrained\([^)]*\)", "".join(code_of(card)))
        assert all("revision=" in call for call in calls if "trust_remote_code" in call), repo_id
        assert calls or repo_id == "tester/positions"
        assert f'source = "{repo_id}"' in card
        assert "README.md" in published.repos["models", repo_id].commits[pinned(card)]
        assert metadata_errors(ModelCard(card).data.to_dict()) == []
        # what the card pins is all there but the pin itself
        old, new = published.files(repo_id, revision=pinned(card)), published.files(repo_id, revision=branch)
        assert {name for name in new if new[name] != old.get(name)} == {"README.md"}


# A merged model, a checkpoint, position embeddings

LOAD_ALL = """
import os
os.chdir({work!r})
import torch
from safetensors.torch import save_file
{merged}
with torch.no_grad():
    logits = model(**inputs).logits
config = model.config
model = AutoModelForImageTextToText.from_pretrained("tester/merged", trust_remote_code=True, prune_method="siglip-672")
{positions}
table = positions.weight.detach().clone()
save_file(dict(logits=logits, table=table), "found.safetensors")
print(config.prune_method, config.num_image_tokens, positions.grid)
"""


def test_a_stranger_loads_the_merged_model_and_the_position_embeddings(online, base, run, tmp_path):
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    push(run.folder, "tester/merged", "--merge", "--licence", "mit")
    push(base, "tester/positions", "--position_embeddings")
    noise_image(5).save(tmp_path / "photo.png")
    (merged,), (positions,) = (code_of(card_of(online, f"tester/{name}")) for name in ("merged", "positions"))
    code = LOAD_ALL.format(
        work=str(tmp_path), merged=merged.replace("Describe the image in detail.", QUESTIONS[0]), positions=positions
    )
    assert run_fresh(code, env=online.env).split()[-3:] == ["shirg-v1", "164", "24"]
    found = load_file(tmp_path / "found.safetensors")
    assert (found["logits"] - run.logits).abs().max() <= 1e-3 * run.logits.abs().max()
    model = ShirgLavidaForConditionalGeneration.from_pretrained(base, prune_method="siglip-672")
    assert torch.equal(found["table"], model.model.vision_tower.foveal_position_embedding.weight)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    data = ModelCard(card_of(online, "tester/merged")).data
    assert data.license == "mit" and data.base_model is None
    assert "a local folder, `my-base`" in card_of(online, "tester/merged")


def test_a_merged_model_keeps_the_type_of_its_base(online, run, base, tmp_path):
    ShirgLavidaForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    half = {**run.report["base_model"], "name_or_path": str(tmp_path / "half")}
    folder = change_report(run, tmp_path / "run", base_model=half)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": half["name_or_path"]})
    )
    push(folder, "tester/merged", "--merge", "--dry_run", tmp_path / "out")
    assert {w.dtype for w in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(("geometry", "grids"), [("toy", [16, 24]), ("full", [32, 48])])
def test_position_embeddings_are_those_of_the_geometry(tmp_path, geometry, grids):
    model = tiny_model(tiny_config("lavida-980", geometry))
    model.save_pretrained(tmp_path / "base")
    push(tmp_path / "base", "tester/positions", "--position_embeddings", "--dry_run", tmp_path / "out")
    tables = load_file(tmp_path / "out" / "position_embeddings.safetensors")
    assert list(tables) == [f"{POSITIONS}.{grid}x{grid}" for grid in grids]
    for preset, grid in zip(("shirg", "siglip-672"), grids, strict=True):
        derived = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path / "base", prune_method=preset)
        assert torch.equal(
            tables[f"{POSITIONS}.{grid}x{grid}"], derived.model.vision_tower.foveal_position_embedding.weight
        )
    assert (tmp_path / "out" / "README.md").read_text().count("interpolated |") == 2


def test_position_embeddings_of_a_run_are_those_that_it_trained(online, base, run, tmp_path):
    push(run.folder, "tester/positions", "--position_embeddings", "--dry_run", tmp_path / "local")
    push(base, "tester/base")
    push(run.folder, "tester/positions", "--position_embeddings", "--base", "tester/base")
    adapter = load_file(run.folder / "adapter_model.safetensors")
    (trained,) = (weight for name, weight in adapter.items() if POSITIONS in name)
    files = online.files("tester/positions")
    for folder in (tmp_path / "local", _written(tmp_path, files["position_embeddings.safetensors"]).parent):
        (file,) = folder.glob("*.safetensors")
        tables = load_file(file)
        assert torch.equal(tables[f"{POSITIONS}.16x16"], trained)
        derived = ShirgLavidaForConditionalGeneration.from_pretrained(base, prune_method="siglip-672")
        assert torch.equal(tables[f"{POSITIONS}.24x24"], derived.model.vision_tower.foveal_position_embedding.weight)
    assert "16x16 patches | trained by the run |" in card_of(online, "tester/positions")
    assert "a local folder, `my-base`" in (tmp_path / "local" / "README.md").read_text()


def test_a_run_without_position_embeddings_says_so(untouched, base, capsys, tmp_path):
    folder = save_run(tmp_path / "narrow", base, WITH_ATTENTION, None).folder
    said = refused(capsys, folder, "tester/x", "--position_embeddings")
    assert "its run trained none" in said and f"shirg push {base}" in said


def test_a_checkpoint_keeps_its_own_card_and_its_table(online, tmp_path):
    push(BUNDLED, "tester/bundled")
    files = online.files("tester/bundled")
    own = {path.name for path in BUNDLED.iterdir() if path.is_file()}
    assert files.keys() == own | {".gitattributes"}
    assert all(files[name] == (BUNDLED / name).read_bytes() for name in own - {"README.md"})
    card, before = card_of(online, "tester/bundled"), (BUNDLED / "README.md").read_text()
    changed = {new for new, old in zip(card.splitlines(), before.splitlines(), strict=True) if new != old}
    assert changed == {'source = "tester/bundled"', f'revision = "{pinned(card)}"'}
    push("tester/bundled", "tester/positions", "--position_embeddings")
    tables = load_file(_written(tmp_path, online.files("tester/positions")["position_embeddings.safetensors"]))
    trained = load_file(BUNDLED / "model.safetensors")["model.vision_tower.foveal_position_embedding.weight"]
    assert torch.equal(tables[f"{POSITIONS}.16x16"], trained)
    assert "the checkpoint's own" in card_of(online, "tester/positions")
    assert ModelCard(card_of(online, "tester/positions")).data.base_model == "tester/bundled"


def _written(folder: Path, content: bytes) -> Path:
    (folder / "file.safetensors").write_bytes(content)
    return folder / "file.safetensors"


def test_a_dry_run_writes_what_would_be_published(online, base, tmp_path):
    push(base, "tester/base", "--dry_run", tmp_path / "out")
    assert not online.repos
    push(base, "tester/base")
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    there = online.files("tester/base")
    assert {name for name in there if there[name] != written.get(name)} == {".gitattributes", "README.md"}
    assert 'revision = "main"' in written["README.md"].decode()


# What is refused, before anything is published


@pytest.fixture
def untouched(online):
    """A Hub with a base, which is as it was when the test ends."""
    push(BUNDLED, "tester/other")
    before = online.files("tester/other")
    yield online
    assert online.files("tester/other") == before and len(online.repos) == 1
    assert not list(Path(tempfile.gettempdir()).glob("shirg-push-*"))


def test_an_adapter_on_a_local_folder_needs_the_hubs_name_of_it(untouched, run, capsys):
    said = refused(capsys, run.folder, "tester/charts")
    assert "trained on a local folder" in said and "--base REPO_ID" in said and "--merge" in said


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("tester/other", "other weights than the run was trained on"),
        ("tester/nowhere", "tester/nowhere cannot be loaded from the Hub"),
        ("tester/other@nothing", "at revision nothing cannot be loaded"),
        ("a/b/c", "neither a folder nor a repository"),
    ],
)
def test_a_base_that_is_not_the_runs_is_refused(untouched, run, capsys, named, says):
    assert says in refused(capsys, run.folder, "tester/charts", "--base", named)


def test_an_unfinished_run_is_refused_and_its_checkpoint_is_not(untouched, run, capsys, tmp_path):
    folder = unfinished(run, tmp_path / "run")
    said = refused(capsys, folder, "tester/charts", "--merge")
    assert "status 'running'" in said and "--checkpoint NAME. Complete ones: checkpoint-40." in said
    for name in ("checkpoint-60", "checkpoint-80"):
        said = refused(capsys, folder, "tester/charts", "--merge", "--checkpoint", name)
        assert f"no complete {name}. Complete ones: checkpoint-40." in said
    said = refused(capsys, folder / "checkpoint-40", "tester/charts", "--merge")
    assert "no run.json" in said and "--checkpoint NAME" in said
    push(folder, "tester/charts", "--merge", "--checkpoint", "checkpoint-40", "--dry_run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**These are the weights of step 40** (`checkpoint-40`) **of a run that had not finished**" in card
    assert "Nothing was evaluated" in card
    assert "| steps, epochs, effective batch | 40, 0.25, 16 |" in card and "| seconds | 31.5 |" in card
    assert "| best step, validation loss, training loss | -, 2.5, 3.5 |" in card


def test_the_adapter_of_a_checkpoint_is_loaded_as_it_was_trained(online, base, run, tmp_path):
    push(base, "tester/base")
    folder = unfinished(run, tmp_path / "run")
    push(folder, "tester/charts", "--base", "tester/base", "--checkpoint", folder / "checkpoint-40")
    files = online.files("tester/charts")
    assert ADAPTER_FILES <= files.keys()
    assert files["adapter_model.safetensors"] == (run.folder / "adapter_model.safetensors").read_bytes()
    assert json.loads(files["run.json"])["checkpoint"] == "checkpoint-40"
    assert "eval_results" not in ModelCard(card_of(online, "tester/charts")).data.to_dict()
    finished = copy_folder(run.folder, tmp_path / "finished")
    (folder / "checkpoint-40").rename(finished / "checkpoint-40")
    push(finished, "tester/charts", "--base", "tester/base", "--checkpoint", "checkpoint-40")
    card = card_of(online, "tester/charts")
    assert "(`checkpoint-40`), not those that the run chose" in card
    assert "Nothing was evaluated with these weights" in card and "eval_results" not in ModelCard(card).data.to_dict()


def unfinished(run, folder: Path) -> Path:
    """The run as it was at step 80, when it had a whole checkpoint, one without a state, and no adapter of its own."""
    report = {name: fact for name, fact in run.report.items() if name not in ("steps", "epochs", "seconds")}
    copy_folder(run.folder, folder)
    (folder / "run.json").write_text(json.dumps({**report, "status": "running", "metrics": {}, "evaluation": []}))
    logged = [{"step": 40, "loss": 3.5}, {"step": 40, "eval_loss": 2.5}, {"step": 80, "loss": 3.0}]
    lines = [json.dumps({**entry, "seconds": 31.5 + place // 2}) for place, entry in enumerate(logged)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "checkpoint-40").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(folder / "checkpoint-40" / name)
    torch.save({}, folder / "checkpoint-40" / "optimizer.pt")
    shutil.copytree(folder / "checkpoint-40", folder / "checkpoint-80")
    state = {"global_step": 40, "epoch": 0.25, "log_history": logged[:2]}
    (folder / "checkpoint-40" / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_broken_runs_are_refused(untouched, run, capsys, tmp_path):
    def broken(name: str, change) -> str:
        folder = copy_folder(run.folder, tmp_path / name)
        change(folder)
        return refused(capsys, folder, "tester/charts", "--merge")

    def without_positions(folder):
        tensors = load_file(folder / "adapter_model.safetensors")
        kept = {name: value for name, value in tensors.items() if POSITIONS not in name}
        save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def lost(folder):
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors[max(tensors)][0] = float("nan")
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    last = max(load_file(run.folder / "adapter_model.safetensors"))
    assert f"{last} holds values that are not finite" in broken("lost", lost)
    folder = str(tmp_path / "lost")
    assert "not finite" in refused(capsys, folder, "tester/charts", "--base", "tester/base")
    assert "not finite" in refused(capsys, folder, "tester/charts", "--position_embeddings")
    assert f"lacks its {POSITIONS}" in broken("positions", without_positions)
    assert "no run.json" in broken("report", lambda folder: (folder / "run.json").unlink())
    assert "lacks footprint, trainable" in broken(
        "facts",
        lambda folder: (folder / "run.json").write_text(
            json.dumps({n: v for n, v in run.report.items() if n not in ("footprint", "trainable")})
        ),
    )
    assert "no adapter_config.json, so there is no adapter" in broken(
        "config", lambda folder: (folder / "adapter_config.json").unlink()
    )
    (tmp_path / "empty").mkdir()
    assert "neither adapter_config.json nor config.json" in refused(capsys, tmp_path / "empty", "tester/charts")
    assert "both adapter_config.json and config.json" in broken(
        "both", lambda folder: (folder / "config.json").write_text("{}")
    )
    assert "There is no folder" in refused(capsys, tmp_path / "nowhere", "tester/charts")


def test_broken_checkpoints_are_refused(untouched, base, capsys, tmp_path):
    folder = copy_folder(base, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert "not of the size that its header says" in refused(capsys, folder, "tester/charts")
    weights.unlink()
    assert "has no model.safetensors" in refused(capsys, folder, "tester/charts")
    (folder / "modeling_shirg_lavida.py").unlink()
    assert "has no modeling_shirg_lavida.py" in refused(capsys, folder, "tester/charts")


def test_flags_without_a_meaning_are_refused(untouched, base, capsys):
    assert "--base, --merge has no meaning" in refused(capsys, base, "tester/x", "--merge", "--base", "tester/other")
    said = refused(capsys, base, "tester/x", "--position_embeddings", "--base", "tester/other")
    assert f"--base has no meaning for {base}, which is no training run" in said


def test_position_embeddings_do_not_take_a_models_place(untouched, base, capsys):
    assert "holds a model" in refused(capsys, base, "tester/other", "--position_embeddings")


def test_a_public_repository_does_not_become_private_by_itself(untouched, base, capsys):
    assert "exists and is public" in refused(capsys, base, "tester/other", "--private")


def test_metadata_that_the_hub_refuses_is_refused_first(untouched, base, capsys):
    assert "license" in refused(capsys, base, "tester/new", "--licence", "Apache License, version 2")
    assert not any("repos/create" in request for request in untouched.requests[-2:])


# Half a push, and the push after another


@pytest.mark.parametrize(
    "broken", ["PUT /lfs/", "POST .*/lfs/objects/batch", "POST .*/commit/", "POST .*/preupload/", "GET /api/models/"]
)
def test_a_push_that_fails_leaves_the_repository_as_it_was(online, base, run, broken, capsys):
    push(base, "tester/charts")
    before = online.repos["models", "tester/charts"].branches.copy(), online.files("tester/charts")
    online.broken = (broken, 1)
    refused(capsys, run.folder, "tester/charts", "--merge")
    online.broken = None
    assert (online.repos["models", "tester/charts"].branches, online.files("tester/charts")) == before
    assert not list(Path(tempfile.gettempdir()).glob("shirg-push-*"))


@pytest.mark.parametrize("at", ["PUT /lfs/", "POST .*/commit/"])
def test_a_killed_push_changes_nothing_and_goes_through_when_it_is_run_again(online, base, run, at):
    push(base, "tester/charts")
    before, local = online.files("tester/charts"), contents(run.folder)
    online.held, asked = at, len(online.requests)
    words = ["push", str(run.folder), "tester/charts", "--merge"]
    kill_when(lambda: any(re.search(at, request) for request in online.requests[asked:]), fork(main, words))
    online.held = None
    assert online.files("tester/charts") == before and contents(run.folder) == local
    push(run.folder, "tester/charts", "--merge")
    assert online.files("tester/charts") != before and contents(run.folder) == local
    for left in Path(tempfile.gettempdir()).glob("shirg-push-*"):  # a killed process cannot remove it
        shutil.rmtree(left)


def test_a_push_is_one_commit_and_then_the_pin(online, base, capsys):
    online.broken = ("POST .*/commit/", 2)
    assert "is published as commit" in refused(capsys, base, "tester/charts")
    there = {path.name: path.read_bytes() for path in base.iterdir()}
    files = online.files("tester/charts")
    assert {name: files.get(name) for name in there} == there
    assert 'revision = "main"' in card_of(online, "tester/charts")


def test_no_connection_is_an_error_without_a_traceback(online, base, capsys, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "The connection to the Hub failed" in refused(capsys, base, "tester/charts")


def test_a_push_replaces_the_model_before_it_and_nothing_else(online, base, run):
    push(base, "tester/base")
    push(base, "tester/charts")
    online.repos["models", "tester/charts"].commit(
        "main",
        {
            **_tree(online),
            "notes.txt": _tree(online)["README.md"],
            "model/old.safetensors": _tree(online)["README.md"],
        },
    )
    push(run.folder, "tester/charts", "--base", "tester/base")
    files = online.files("tester/charts").keys()
    assert {"adapter_model.safetensors", "run.json", "notes.txt", "model/old.safetensors"} <= files
    assert not {"model.safetensors", "config.json"} & files
    push(base, "tester/charts")
    files = online.files("tester/charts").keys()
    assert {"model.safetensors", "config.json", "notes.txt"} <= files
    assert not {"adapter_model.safetensors", "adapter_config.json", "run.json", ".eval_results/shirg.yaml"} & files


def _tree(hub):
    repo = hub.repos["models", "tester/charts"]
    return repo.commits[repo.branches["main"]]


def test_a_run_on_a_hub_base_needs_no_flag(online, base, run, tmp_path):
    push(base, "tester/base")
    head = online.repos["models", "tester/base"].branches["main"]
    named = {**run.report["base_model"], "name_or_path": "tester/base", "revision": head}
    folder = change_report(run, tmp_path / "run", base_model=named)
    push(copy_folder(base, tmp_path / "new"), "tester/base", "--licence", "mit")
    assert online.repos["models", "tester/base"].branches["main"] != head
    push(folder, "tester/charts")
    assert json.loads(online.files("tester/charts")["adapter_config.json"])["revision"] == head


def test_what_is_this_machines_own_is_not_told():
    report = {
        "command": "torchrun /home/ada/.venv/bin/shirg train --data rows:/data/x.jsonl,images=/data/i.zip --lr 1/2",
        "data": [{"source": "~/rows/a.json"}, {"source": "https://huggingface.co/datasets/a/b"}, {"source": "a/b"}],
        "flags": "--hub_token=abc --token abc hf_abcdefgh",
        "count": 3,
    }
    assert publishable(report) == {
        "command": "torchrun shirg train --data rows:x.jsonl,images=i.zip --lr 1/2",
        "data": [{"source": "a.json"}, {"source": "https://huggingface.co/datasets/a/b"}, {"source": "a/b"}],
        "flags": "--hub_token=*** --token *** hf_***",
        "count": 3,
    }
