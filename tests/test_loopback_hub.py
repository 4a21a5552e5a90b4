"""The real clients, huggingface_hub and transformers, push to the loopback Hub and pull from it over HTTP."""

import pytest

from fresh_process import run_fresh
from loopback_hub import LoopbackHub

PUSH = """
from pathlib import Path
from huggingface_hub import HfApi

api = HfApi()
assert api.create_repo("tester/toy").repo_id == api.create_repo("tester/toy", exist_ok=True).repo_id == "tester/toy"
Path("up/sub").mkdir(parents=True)
Path("up/README.md").write_text("---\\nlicense: apache-2.0\\n---\\nA toy.")
Path("up/sub/empty.txt").touch()
Path("up/model.safetensors").write_bytes(bytes(range(256)) * 6000)
commit = api.upload_folder(repo_id="tester/toy", folder_path="up").oid
api.create_branch("tester/toy", branch="feature-one")
api.create_branch("tester/toy", branch="feature-one", exist_ok=True)
api.upload_file(path_or_fileobj=b"branch", path_in_repo="a.txt", repo_id="tester/toy", revision="feature-one")
api.delete_file("sub/empty.txt", "tester/toy", revision="feature-one")
print(commit)
"""
PULL = """
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

folder = Path(snapshot_download("tester/toy"))
assert (folder / "model.safetensors").read_bytes() == bytes(range(256)) * 6000
assert (folder / "sub/empty.txt").read_bytes() == b"" and not (folder / "a.txt").exists()
assert Path(hf_hub_download("tester/toy", "a.txt", revision="feature-one")).read_text() == "branch"
assert not HfApi().file_exists("tester/toy", "sub/empty.txt", revision="feature-one")
for error, arguments in [
    (EntryNotFoundError, dict(filename="missing.json")),
    (RevisionNotFoundError, dict(filename="README.md", revision="missing")),
    (RepositoryNotFoundError, dict(filename="README.md", repo_id="tester/missing")),
]:
    try:
        hf_hub_download(**{"repo_id": "tester/toy", **arguments})
    except error:
        continue
    raise AssertionError(error)
print([entry.path for entry in HfApi().get_paths_info("tester/toy", ["sub", "model.safetensors"])])
print([f.path for f in HfApi().list_repo_tree("tester/toy", "sub")], folder.name)
"""


def test_push_and_pull(hub: LoopbackHub) -> None:
    commit = run_fresh(PUSH, env=hub.env).strip()
    assert sorted(hub.files("tester/toy", revision=commit)) == [
        *(".gitattributes", "README.md", "model.safetensors", "sub/empty.txt")
    ]
    assert hub.repos["tester/toy"].commits[commit]["model.safetensors"].lfs
    assert sum(request.startswith("PUT /lfs/") for request in hub.requests) == 1
    assert run_fresh(PULL, env=hub.env).splitlines() == [
        "['model.safetensors', 'sub']",
        f"['sub/empty.txt'] {commit}",
    ]


def test_writing_needs_the_token(hub: LoopbackHub) -> None:
    code = "from huggingface_hub import HfApi; HfApi().create_repo('tester/toy')"
    with pytest.raises(RuntimeError, match="401"):
        run_fresh(code, env=hub.env | {"HF_TOKEN": "hf_x"})
    assert not hub.repos
