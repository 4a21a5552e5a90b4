"""The real clients, huggingface_hub and transformers, push to the loopback Hub and pull from it over HTTP."""

import pytest

from fresh_process import run_fresh
from loopback_hub import LoopbackHub

LARGE = 1_500_000


def test_push_and_pull(hub: LoopbackHub) -> None:
    push = f"""
from pathlib import Path
from huggingface_hub import HfApi

api = HfApi()
assert api.whoami()["name"] == "tester"
url = api.create_repo("tester/toy")
assert url.repo_id == "tester/toy"
api.create_repo("tester/toy", exist_ok=True)
Path("up/sub").mkdir(parents=True)
Path("up/README.md").write_text("---\\nlicense: apache-2.0\\n---\\nA toy.")
Path("up/sub/empty.txt").touch()
Path("up/model.safetensors").write_bytes(bytes(range(256)) * ({LARGE} // 256))
info = api.upload_folder(repo_id="tester/toy", folder_path="up")
print(info.oid)
"""
    commit = run_fresh(push, env=hub.env).strip()
    files = hub.files("tester/toy", revision=commit)
    assert sorted(files) == [".gitattributes", "README.md", "model.safetensors", "sub/empty.txt"]
    assert hub.repos["models", "tester/toy"].commits[commit]["model.safetensors"].lfs
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == 1

    pull = f"""
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

folder = Path(snapshot_download("tester/toy"))
assert folder.name == {commit!r}
assert (folder / "model.safetensors").read_bytes() == bytes(range(256)) * ({LARGE} // 256)
assert (folder / "sub/empty.txt").read_bytes() == b""
again = hf_hub_download("tester/toy", "README.md", force_download=True)
assert Path(again).read_text().endswith("A toy.")
for error, call in [
    (EntryNotFoundError, lambda: hf_hub_download("tester/toy", "missing.json")),
    (RevisionNotFoundError, lambda: hf_hub_download("tester/toy", "README.md", revision="missing")),
    (RepositoryNotFoundError, lambda: hf_hub_download("tester/missing", "README.md")),
]:
    try:
        call()
    except error:
        print(error.__name__)
for entry in HfApi().get_paths_info("tester/toy", ["sub", "model.safetensors"]):
    print(type(entry).__name__, entry.path, getattr(entry, "lfs", None) is not None)
print([f.path for f in HfApi().list_repo_tree("tester/toy", "sub")])
"""
    lines = run_fresh(pull, env=hub.env).splitlines()
    assert lines[:3] == ["EntryNotFoundError", "RevisionNotFoundError", "RepositoryNotFoundError"]
    assert lines[3:] == ["RepoFile model.safetensors True", "RepoFolder sub False", "['sub/empty.txt']"]


def test_a_branch_is_apart_from_main(hub: LoopbackHub) -> None:
    code = """
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

api = HfApi()
api.create_repo("tester/toy")
add = dict(repo_id="tester/toy", path_in_repo="a.txt")
api.upload_file(path_or_fileobj=b"main", **add)
try:
    api.upload_file(path_or_fileobj=b"lost", revision="refs/x", **add)
except RevisionNotFoundError:
    print("no branch, no commit")
api.create_branch("tester/toy", branch="feature/one")
api.create_branch("tester/toy", branch="feature/one", exist_ok=True)
api.upload_file(path_or_fileobj=b"branch", revision="feature/one", **add)
api.create_tag("tester/toy", tag="v1")
for revision in ("main", "feature/one", "v1"):
    print(Path(hf_hub_download("tester/toy", "a.txt", revision=revision)).read_text())
print(sorted(ref.name for ref in api.list_repo_refs("tester/toy").branches))
api.delete_file("a.txt", "tester/toy")
print(api.file_exists("tester/toy", "a.txt"), api.file_exists("tester/toy", "a.txt", revision="v1"))
try:
    api.upload_file(path_or_fileobj=b"x", create_pr=True, **add)
except HfHubHTTPError as error:
    print("no pull requests" in str(error))
"""
    assert run_fresh(code, env=hub.env).splitlines() == [
        "no branch, no commit",
        "main",
        "branch",
        "main",
        "['feature/one', 'main']",
        "False True",
        "True",
    ]


def test_writing_needs_the_token(hub: LoopbackHub) -> None:
    with pytest.raises(RuntimeError, match="401"):
        run_fresh(
            "from huggingface_hub import HfApi; HfApi().create_repo('tester/toy')", env=hub.env | {"HF_TOKEN": "hf_x"}
        )
    assert not hub.repos


def test_transformers_pushes_and_loads_a_model(hub: LoopbackHub) -> None:
    code = """
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
model = LlamaForCausalLM(LlamaConfig(**sizes))
model.push_to_hub("tester/llama")
model.push_to_hub("tester/llama", revision="later")
for revision in ("main", "later"):
    loaded = AutoModelForCausalLM.from_pretrained("tester/llama", revision=revision)
    print(torch.equal(loaded.lm_head.weight, model.lm_head.weight))
"""
    assert run_fresh(code, env=hub.env).splitlines() == ["True", "True"]
    assert {"config.json", "model.safetensors", "README.md"} <= hub.files("tester/llama", revision="later").keys()
    assert hub.repos["models", "tester/llama"].branches.keys() == {"main", "later"}
