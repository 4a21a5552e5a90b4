"""The base model that a published adapter names: a commit on the Hub that has the weights it was trained on."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from .licences import licence_fields
from .stored_weights import StoredWeights, base_fingerprint

logger = logging.get_logger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class BaseModel:
    """A base model as cards name it.

    Args:
        name: the Hub id, or the last part of a local folder's path.
        revision: the commit; `None` for a local folder, which nobody else can load.
        licence: the licence fields of its card; empty if it states none.
    """

    name: str
    revision: str | None
    licence: dict[str, str] = field(default_factory=dict)


def parse_repo(text: str) -> tuple[str, str | None]:
    """`REPO_ID` or `REPO_ID@REVISION`.

    Raises:
        ValueError: it is neither.
    """
    name, _, revision = text.partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"{text!r} is neither a folder nor a repository: write REPO_ID or REPO_ID@REVISION ({error})."
        ) from None
    return name, revision or None


def local_base(reported: dict) -> bool:
    """Whether a run was trained on a folder."""
    name = reported["name_or_path"]
    return reported["revision"] is None and (Path(name).is_absolute() or Path(name).is_dir())


def pinned_base(reported: dict, wanted: str | None, token: str | None) -> BaseModel:
    """The commit that an adapter is published for.

    Args:
        reported: `base_model` of the run's report.
        wanted: `REPO_ID` or `REPO_ID@REVISION`, where the base is on the Hub; by default where the run took it from.
        token: of the Hub.

    Raises:
        ValueError: it is a folder, or not on the Hub at that revision, or has other weights than the run started from.
    """
    if wanted is None and local_base(reported):
        raise ValueError(
            f"The run was trained on a local folder, {reported['name_or_path']}, from which nobody else can load the "
            "base of this adapter. Push that folder (`shirg push FOLDER REPO_ID`), then name it: --base REPO_ID. Or "
            "publish the merged model: --merge."
        )
    name, revision = parse_repo(wanted) if wanted else (reported["name_or_path"], reported["revision"])
    try:
        info = HfApi(token=token).model_info(name, revision=revision)
    except OfflineModeIsEnabled:
        if not _COMMIT.fullmatch(revision or ""):
            raise ValueError(
                f"The Hub is offline, so the commit of {name} cannot be looked up: --base {name}@COMMIT."
            ) from None
        logger.warning(f"The Hub is offline: the weights of {name} at {revision} were not compared with the run's.")
        return BaseModel(name, revision)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"The base {name}{f' at revision {revision}' if revision else ''} cannot be loaded from the Hub "
            f"({str(error).splitlines()[0]}): push it first, or name where it is with --base REPO_ID@REVISION."
        ) from None
    _compare(reported["fingerprint"], StoredWeights.on_hub(name, info.sha, token))
    return BaseModel(name, info.sha, licence_fields(info.card_data.to_dict() if info.card_data else {}))


def _compare(wanted: str | None, stored: StoredWeights) -> None:
    if wanted is None:
        logger.warning(f"The run reports no fingerprint of its base: {stored.name} was not compared with it.")
        return
    found = base_fingerprint(stored)
    if found != wanted:
        raise ValueError(
            f"{stored.name} has other weights than the run was trained on (fingerprint {found[:12]}, the run's is "
            f"{wanted[:12]}): name the right base with --base REPO_ID@REVISION."
        )
