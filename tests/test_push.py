"""`shirg push` to a Hub on 127.0.0.1 and back, by people who have nothing but the card."""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from adapter_runs import POSITIONS, WITH_ATTENTION, change_report, copy_folder, save_base, save_run
from child_process import fork, kill_when
from command_runs import contents
from fresh_process import run_fresh
from loopback_hub import Blob
from modeling_shirg import ShirgLavidaForConditionalGeneration
from shirg_scripts.cli import main
from tiny_model import QUESTIONS, noise_image, tiny_config, tiny_model

# huggingface_hub's own, when it uploads a large file.
pytestmark = pytest.mark.filterwarnings("default:Use 'content=:DeprecationWarning")

BUNDLED = Path(__file__).parents[1] / "hub_card" / "shirg-lavida-tiny"
WEIGHTS = "adapter_model.safetensors"
# Of an adapter's repository, beside the code files.
ADAPTER_FILES = {"README.md", "adapter_config.json", WEIGHTS, "chat_template.jinja", "processor_config.json"}
ADAPTER_FILES |= {"processing_shirg_lavida.py", "run.json", "tokenizer.json", "tokenizer_config.json"}


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


@pytest.fixture
def untouched(online):
    """A Hub with a base, which is as it was when the test ends."""
    push(BUNDLED, "tester/other")
    before = online.files("tester/other")
    yield online
    assert online.files("tester/other") == before and len(online.repos) == 1
    assert not list(Path(tempfile.gettempdir()).glob("shirg-push-*"))


@pytest.fixture
def refused(capsys):
    """Push, which is refused: the message."""

    def push_that_fails(*words) -> str:
        assert main(["push", *map(str, words)]) == 2
        return capsys.readouterr().err

    return push_that_fails


def push(*words) -> None:
    assert main(["push", *map(str, words)]) == 0


def card_of(hub, repo_id: str, revision: str = "main") -> str:
    return hub.files(repo_id, revision=revision)["README.md"].decode()


def code_of(card: str) -> list[str]:
    """The card's examples, with the question of the tests."""
    code = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    return [block.replace("Describe the image in detail.", QUESTIONS[0]) for block in code]


def pinned(card: str) -> str:
    """The commit that the card's examples name."""
    (commit,) = set(re.findall(r'^revision = "([0-9a-f]{40})"$', card, flags=re.MULTILINE))
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
try:
    AutoModelForImageTextToText.from_pretrained(
        source, adapter_kwargs=dict(revision=revision), trust_remote_code=True, prune_method="siglip-672"
    )
except ValueError as error:
    assert "size mismatch" in str(error), error
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
    assert pinned(card) in published.repos["tester/charts"].commits
    home = {"HF_HOME": str(tmp_path / "home")}
    run_fresh(STRANGER.format(work=str(tmp_path), card="\n".join(code_of(card))), env=published.env | home)
    for name, logits in load_file(tmp_path / "logits.safetensors").items():
        assert torch.equal(logits, run.logits), name
    offline = home | {"HF_HUB_OFFLINE": "1"}
    run_fresh(OFFLINE.format(work=str(tmp_path), card=code_of(card)[0]), env=offline)


def test_the_adapter_repository_names_its_base_and_holds_nothing_of_this_machine(published, run, base):
    files = published.files("tester/charts", revision="v2")
    assert {name for name in files if not name.endswith("_shirg.py")} >= ADAPTER_FILES
    head = published.repos["tester/base"].branches["main"]
    config, report = (json.loads(files[name]) for name in ("adapter_config.json", "run.json"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("tester/base", head)
    assert report["base_model"] == run.report["base_model"] | {"name_or_path": "tester/base", "revision": head}
    assert report["command"] == "shirg train --model my-base --hub_token *** --token=*** hf_*** --output_dir charts"
    changed = {name for name in report if report[name] != run.report[name]}
    assert changed == {"base_model", "command", "data"}
    for name, content in files.items():
        of_this_machine = (b"hf_very", b"/data/ada", str(base.parent).encode())
        assert name.endswith(".py") or not any(part in content for part in of_this_machine), name
    private = [published.repos[f"tester/{name}"].private for name in ("charts", "base")]
    assert private == [True, False]


def test_the_card_says_what_the_report_says(published):
    card = card_of(published, "tester/charts", "v2")
    report = json.loads(published.files("tester/charts", revision="v2")["run.json"])
    data = ModelCard(card).data
    assert (data.base_model, data.base_model_relation, data.license) == ("tester/base", "adapter", "apache-2.0")
    assert {"custom_code", "lora", "peft", "shirg"} <= set(data.tags)
    results = [(result.dataset_type, result.metric_type, result.metric_value) for result in data.eval_results]
    assert results == [("charts", "exact_match", 0.625), ("lmms-lab/ChartQA", "relaxed_accuracy", 0.375)]
    said = [
        "| system | `shirg-v1`, `selection_budget=100` |",
        "| footprint | `charts`, LoRA rank 4, alpha 8 |",
        f"| trained weights | {report['trainable']['total']:,} (1.25% of the base's) |",
        "| `model.multi_modal_projector.linear_2` | 1,251 |",
        "| rows:charts.jsonl | charts.jsonl | 0.75 | 4,321 | 17 |",
        "| steps, epochs, effective batch | 240, 1.5, 16 |",
        "| best step, validation loss, training loss | 180, 1.234, 1.346 |",
        "| ChartQA | relaxed_accuracy | 0.375 | 0.356 to 0.394 | 2,500 | - | - |",
        "torch 2.13.0",
        "Toy-scale",
        *(report["base_model"][name] for name in ("revision", "fingerprint")),
    ]
    assert [text for text in said if text not in card] == []


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
save_file(dict(logits=logits, table=positions.weight.detach().clone()), "found.safetensors")
print(config.prune_method, config.num_image_tokens, positions.grid)
"""


def test_a_stranger_loads_the_merged_model_and_the_position_embeddings(online, base, run, tmp_path):
    before = contents(base)
    push(run.folder, "tester/merged", "--merge", "--licence", "mit")
    push(base, "tester/positions", "--position_embeddings")
    noise_image(5).save(tmp_path / "photo.png")
    (merged,), (positions,) = (code_of(card_of(online, f"tester/{name}")) for name in ("merged", "positions"))
    code = LOAD_ALL.format(work=str(tmp_path), merged=merged, positions=positions)
    assert run_fresh(code, env=online.env).split()[-3:] == ["shirg-v1", "164", "24"]
    tensors = load_file(tmp_path / "found.safetensors")
    assert (tensors["logits"] - run.logits).abs().max() <= 1e-3 * run.logits.abs().max()
    model = ShirgLavidaForConditionalGeneration.from_pretrained(base, prune_method="siglip-672")
    assert torch.equal(tensors["table"], model.model.vision_tower.foveal_position_embedding.weight)
    data = ModelCard(card_of(online, "tester/merged")).data
    assert data.license == "mit" and data.base_model is None and contents(base) == before
    assert "a local folder, `my-base`" in card_of(online, "tester/merged")


@pytest.mark.parametrize(("geometry", "grids"), [("toy", [16, 24]), ("full", [32, 48])])
def test_position_embeddings_are_those_of_the_geometry(tmp_path, geometry, grids):
    tiny_model(tiny_config("lavida-980", geometry)).save_pretrained(tmp_path / "base")
    push(tmp_path / "base", "tester/positions", "--position_embeddings", "--dry_run", tmp_path / "out")
    tables = load_file(tmp_path / "out" / "position_embeddings.safetensors")
    assert list(tables) == [f"{POSITIONS}.{grid}x{grid}" for grid in grids]
    for preset, table in zip(("shirg", "siglip-672"), tables.values(), strict=True):
        derived = ShirgLavidaForConditionalGeneration.from_pretrained(tmp_path / "base", prune_method=preset)
        assert torch.equal(table, derived.model.vision_tower.foveal_position_embedding.weight)


def test_a_checkpoint_keeps_its_own_card(online, tmp_path):
    push(BUNDLED, "tester/bundled", "--dry_run", tmp_path / "out")
    assert not online.repos
    push(BUNDLED, "tester/bundled")
    files, own = online.files("tester/bundled"), {path.name for path in BUNDLED.iterdir() if path.is_file()}
    assert files.keys() == own | {".gitattributes"} and {path.name for path in (tmp_path / "out").iterdir()} == own
    assert all(files[name] == (BUNDLED / name).read_bytes() for name in own - {"README.md"})
    card, before = card_of(online, "tester/bundled"), (BUNDLED / "README.md").read_text()
    changed = {new for new, old in zip(card.splitlines(), before.splitlines(), strict=True) if new != old}
    assert changed == {'source = "tester/bundled"', f'revision = "{pinned(card)}"'}
    push("tester/bundled", "tester/positions", "--position_embeddings")
    assert ModelCard(card_of(online, "tester/positions")).data.base_model == "tester/bundled"


# What is refused, before anything is published


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ((), "(?s)is a local folder.*--base REPO_ID.*--merge"),
        (("--base", "tester/other"), "other weights than the run was trained on"),
        (("--base", "tester/nowhere"), "tester/nowhere"),
        (("--base", "tester/other@nothing"), "nothing"),
    ],
)
def test_a_base_that_is_not_the_runs_is_refused(untouched, run, refused, named, says):
    assert re.search(says, refused(run.folder, "tester/charts", *named))


def unfinished(run, folder: Path) -> Path:
    """The run as it was at step 80, when it had a whole checkpoint, one without a state, and no adapter of its own."""
    report = {name: fact for name, fact in run.report.items() if name not in ("steps", "epochs", "seconds")}
    copy_folder(run.folder, folder)
    (folder / "run.json").write_text(json.dumps({**report, "status": "running", "metrics": {}, "evaluation": []}))
    (folder / "checkpoint-40").mkdir()
    for name in ("adapter_config.json", WEIGHTS):
        (folder / name).rename(folder / "checkpoint-40" / name)
    shutil.copytree(folder / "checkpoint-40", folder / "checkpoint-80")
    logged = [{"step": 40, "loss": 3.5}, {"step": 40, "eval_loss": 2.5}]
    state = {"global_step": 40, "epoch": 0.25, "log_history": logged}
    (folder / "checkpoint-40" / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_of_an_unfinished_run_a_complete_checkpoint_is_published(online, base, run, refused, tmp_path):
    push(base, "tester/base")
    folder = unfinished(run, tmp_path / "run")
    words = [folder, "tester/charts", "--base", "tester/base"]
    assert "status 'running'" in refused(*words)
    for name in ("checkpoint-60", "checkpoint-80"):
        assert re.search(
            f"{name} is not complete.*NAME: checkpoint-40", refused(*words, "--checkpoint", name), re.DOTALL
        )
    assert "no run.json" in refused(folder / "checkpoint-40", *words[1:])
    push(*words, "--checkpoint", "checkpoint-40")
    files, card = online.files("tester/charts"), card_of(online, "tester/charts")
    assert files[WEIGHTS] == (run.folder / WEIGHTS).read_bytes()
    assert json.loads(files["run.json"])["checkpoint"] == "checkpoint-40"
    assert "**These are the weights of step 40** (`checkpoint-40`) **of a run that had not finished**" in card
    assert "| steps, epochs, effective batch | 40, 0.25, 16 |" in card
    assert "| best step, validation loss, training loss | -, 2.5, 3.5 |" in card
    assert "Nothing was evaluated with these weights" in card and "eval_results" not in ModelCard(card).data.to_dict()


def test_broken_runs_are_refused(untouched, run, refused, tmp_path):
    tensors = load_file(run.folder / WEIGHTS)
    last = max(tensors)
    lost, partial, broken = (copy_folder(run.folder, tmp_path / name) for name in ("lost", "partial", "broken"))
    save_file({**tensors, last: tensors[last] * torch.nan}, lost / WEIGHTS, metadata={"format": "pt"})
    for flags in (["--merge"], ["--base", "tester/other"]):
        assert f"{last} holds values that are not finite" in refused(lost, "tester/charts", *flags)
    without = {name: tensors[name] for name in tensors if POSITIONS not in name}
    save_file(without, partial / WEIGHTS, metadata={"format": "pt"})
    assert POSITIONS in refused(partial, "tester/charts", "--merge")
    report = {name: fact for name, fact in run.report.items() if name != "footprint"}
    (broken / "run.json").write_text(json.dumps(report))
    assert "footprint" in refused(broken, "tester/charts", "--merge")
    for name in ("run.json", "adapter_config.json"):
        (broken / name).unlink()
        assert f"no {name}" in refused(broken, "tester/charts", "--merge")
        shutil.copy(run.folder / name, broken)


def test_broken_checkpoints_are_refused(untouched, base, refused, tmp_path):
    folder = copy_folder(base, tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert weights.name in refused(folder, "tester/charts")
    for missing in (weights, folder / "modeling_shirg_lavida.py"):
        missing.unlink()
        assert missing.name in refused(folder, "tester/charts")


# Half a push, and the push after another


@pytest.mark.parametrize("broken", ["PUT /lfs/", "POST .*/commit/", "POST .*/preupload/", "GET /api/models/"])
def test_a_push_that_fails_leaves_the_repository_as_it_was(online, base, run, broken, refused):
    push(base, "tester/charts")
    before = online.repos["tester/charts"].branches.copy(), online.files("tester/charts")
    online.broken = (broken, 1)
    refused(run.folder, "tester/charts", "--merge")
    online.broken = None
    assert (online.repos["tester/charts"].branches, online.files("tester/charts")) == before
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


def test_a_push_is_one_commit_and_then_the_pin(online, base, refused, monkeypatch):
    online.broken = ("POST .*/commit/", 2)
    assert "is published as" in refused(base, "tester/charts")
    there, files = {path.name: path.read_bytes() for path in base.iterdir()}, online.files("tester/charts")
    assert {name: files.get(name) for name in there} == there
    assert 'revision = "main"' in card_of(online, "tester/charts")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "The connection to the Hub failed" in refused(base, "tester/charts")


def test_a_push_replaces_the_model_before_it_and_nothing_else(online, base, run):
    push(base, "tester/base")
    push(base, "tester/charts")
    repo, notes = online.repos["tester/charts"], Blob(b"notes")
    mine = {"notes.txt": notes, "model/old.safetensors": notes}
    repo.commit("main", {**repo.commits[repo.branches["main"]], **mine})
    of_model, of_adapter = {"model.safetensors", "config.json"}, {WEIGHTS, "adapter_config.json"}
    push(run.folder, "tester/charts", "--base", "tester/base")
    files = online.files("tester/charts").keys()
    assert of_adapter | mine.keys() <= files and not of_model & files
    push(base, "tester/charts")
    files = online.files("tester/charts").keys()
    assert of_model | mine.keys() <= files and not (of_adapter | {"run.json"}) & files


def test_a_run_on_a_hub_base_needs_no_flag(online, base, run, tmp_path):
    push(base, "tester/base")
    head = online.repos["tester/base"].branches["main"]
    named = {**run.report["base_model"], "name_or_path": "tester/base", "revision": head}
    folder = change_report(run, tmp_path / "run", base_model=named)
    push(copy_folder(base, tmp_path / "new"), "tester/base", "--licence", "mit")
    assert online.repos["tester/base"].branches["main"] != head
    push(folder, "tester/charts", "--token", os.environ["HF_TOKEN"])
    assert json.loads(online.files("tester/charts")["adapter_config.json"])["revision"] == head
