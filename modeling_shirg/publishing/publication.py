"""What is published: files for the root of a repository, and a card that says where they are."""

import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError

from modeling_shirg.running.files import new_folder

from .cards import addressed

CARD = "README.md"
EVAL_RESULTS = ".eval_results/shirg.yaml"
# Of an earlier push, deleted with the next one unless that replaces them: two kinds of weights would be loaded as one.
_WEIGHTS_AND_FACTS = (
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "config.json",
    "run.json",
    EVAL_RESULTS,
)


@dataclass
class Publication:
    """One repository's content.

    Args:
        card: its README.md. The lines `source = "..."` and `revision = "..."` of its examples are filled in.
        files: path in the repository to a file here, or to bytes; without the card.
        is_model: whether it takes the place of a model that the repository holds; what does not, has no place there.
    """

    card: ModelCard
    files: dict[str, Path | bytes] = field(default_factory=dict)
    is_model: bool = True

    def write(self, folder: Path, repo_id: str, revision: str) -> None:
        """Write what would be published to a new folder, which appears as a whole.

        Raises:
            ValueError: `folder` is there already and not empty.
        """
        with new_folder(folder) as workshop:
            for path, content in {**self.files, CARD: self._card(repo_id, revision)}.items():
                (workshop / path).parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    (workshop / path).write_bytes(content)
                else:
                    shutil.copyfile(content, workshop / path)

    def push(self, repo_id: str, private: bool, branch: str | None, token: str | None) -> str:
        """Publish in one commit, then write that commit's id into the card's examples. Returns the id.

        Until the first commit is made nothing that was there changes; it fails if the branch has moved since it was
        looked at. The second commit touches the card alone.

        Args:
            repo_id: is created if it does not exist.
            private: a new repository is private; an existing one has to be.
            branch: is created from `main` if it does not exist; by default `main`.
            token: of the Hub.

        Raises:
            ValueError: the Hub finds fault with the card's metadata, or the repository is public and should not be, or
                holds a model and should not.
            OSError: the Hub refuses, or cannot be reached.
        """
        api = HfApi(token=token)
        revision = branch or "main"
        ModelCard(addressed(str(self.card), repo_id, revision)).validate()
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(
                f"{repo_id} exists and is public, so --private cannot be kept: make it private in its settings, or "
                "name another repository."
            )
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        head = api.model_info(repo_id, revision=revision)
        files = {**self.files, CARD: self._card(repo_id, revision)}
        held = [entry.rfilename for entry in head.siblings if _is_of_a_model(entry.rfilename)]
        if held and not self.is_model:
            raise ValueError(
                f"{repo_id} holds a model ({held[0]}), whose card this would replace: name another REPO_ID."
            )
        stale = [path for path in held if path not in files]
        operations = [
            *(CommitOperationAdd(path, content) for path, content in files.items()),
            *(CommitOperationDelete(path) for path in stale),
        ]
        try:
            commit = api.create_commit(
                repo_id,
                operations,
                commit_message="Published with shirg push",
                revision=revision,
                parent_commit=head.sha,
            ).oid
        except RuntimeError as error:  # what huggingface_hub makes of a large file that did not get through
            raise ConnectionError(f"{error} {error.__cause__} {repo_id} is as it was: push again.") from error
        pinned = self._card(repo_id, commit)
        if pinned == files[CARD]:
            return commit
        try:
            api.create_commit(
                repo_id,
                [CommitOperationAdd(CARD, pinned)],
                commit_message=f"The card's examples name commit {commit[:12]}",
                revision=revision,
                parent_commit=commit,
            )
        except HfHubHTTPError as error:
            raise OSError(
                f"{repo_id} is published as commit {commit}, but the examples of its card could not be given that "
                f"commit: {error}"
            ) from error
        return commit

    def _card(self, repo_id: str, revision: str) -> bytes:
        return addressed(str(self.card), repo_id, revision).encode()


def _is_of_a_model(path: str) -> bool:
    return any(fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in _WEIGHTS_AND_FACTS)
