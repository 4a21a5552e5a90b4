"""What is published: files for the root of a repository, and a card whose examples name the repository."""

import shutil
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError

from modeling_shirg.running.files import new_folder

from .cards import addressed

CARD = "README.md"
# Files of an earlier push, deleted unless the next one replaces them: of two kinds of weights, loaders take either.
_OF_A_MODEL = ("model*.safetensors", "model.safetensors.index.json", "config.json", "run.json", "adapter_*")


@dataclass
class Publication:
    """One repository's content.

    Args:
        card: the README.md.
        files: files here by their paths in the repository, without the card.
        is_model: whether the publication may take the place of a model in the repository.
    """

    card: ModelCard
    files: dict[str, Path]
    is_model: bool = True

    def write(self, folder: Path, repo_id: str, revision: str) -> None:
        """Write the content to a folder that is new or empty; it appears as a whole."""
        with new_folder(folder) as workshop:
            for path, source in self.files.items():
                (workshop / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, workshop / path)
            (workshop / CARD).write_bytes(self._card(repo_id, revision))

    def push(self, repo_id: str, private: bool = False, branch: str | None = None) -> str:
        """Publish in one commit, then write that commit's id into the card's examples. Returns the id.

        The first commit fails if the branch has moved since its files were listed; the second one touches the card
        alone.

        `repo_id` and `branch` (`main` by default) are created if they do not exist. With `private` a new repository is
        private; an existing one has to be.
        """
        api, revision = HfApi(), branch or "main"
        ModelCard(addressed(str(self.card), repo_id, revision)).validate()
        repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.model_info(repo_id).private:
            raise ValueError(f"{repo_id} exists and is public: make it private in its settings, or drop --private.")
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        head = api.model_info(repo_id, revision=revision)
        held = [entry.rfilename for entry in head.siblings if _is_of_a_model(entry.rfilename)]
        if held and not self.is_model:
            raise ValueError(f"{repo_id} holds a model ({held[0]}) with a card of its own: name another REPO_ID.")
        card = self._card(repo_id, revision)
        operations = [CommitOperationAdd(path, source) for path, source in self.files.items()]
        operations += [CommitOperationAdd(CARD, card)]
        operations += [CommitOperationDelete(path) for path in held if path not in self.files]
        where = {"repo_id": repo_id, "revision": revision}
        try:
            message = "Published with shirg push"
            commit = api.create_commit(**where, operations=operations, commit_message=message, parent_commit=head.sha)
        except RuntimeError as error:  # raised by huggingface_hub when the upload of a large file fails
            raise ConnectionError(f"{error} {error.__cause__} {repo_id} is as it was: push again.") from error
        pinned = self._card(repo_id, commit.oid)
        if pinned != card:
            message, operations = f"The card names commit {commit.oid[:12]}", [CommitOperationAdd(CARD, pinned)]
            try:
                api.create_commit(**where, operations=operations, commit_message=message, parent_commit=commit.oid)
            except HfHubHTTPError as error:
                raise OSError(
                    f"{repo_id} is published as {commit.oid}, but its card does not say so: {error}"
                ) from error
        return commit.oid

    def _card(self, repo_id: str, revision: str) -> bytes:
        return addressed(str(self.card), repo_id, revision).encode()


def _is_of_a_model(path: str) -> bool:
    return "/" not in path and any(fnmatchcase(path, pattern) for pattern in _OF_A_MODEL)
