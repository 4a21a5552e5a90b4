"""Which publication a command line means."""

from pathlib import Path

from .base_model import BaseModel, local_base, pinned_base
from .contents import adapter_publication, check_finite, checkpoint_publication, kind_of, merged_publication
from .positions import positions_publication, trained_positions_publication
from .publication import Publication
from .run_folder import open_run


def prepare(
    source: str,
    repo_id: str,
    workshop: Path,
    merge: bool = False,
    position_embeddings: bool = False,
    base: str | None = None,
    licence: str | None = None,
    token: str | None = None,
    checkpoint: str | None = None,
) -> Publication:
    """What is to be published of `source`; nothing is published here.

    Args:
        source: folder of a run or of a checkpoint; for position embeddings `REPO_ID[@REVISION]` will do.
        repo_id: where it will be.
        workshop: an empty folder for files that are made; it has to outlive the publication.
        merge: the merged model instead of the adapter.
        position_embeddings: these alone.
        base: `REPO_ID[@REVISION]` of a run's base on the Hub.
        licence: identifier of the licence; by default what the base's card states.
        token: of the Hub.
        checkpoint: name of one of a run's checkpoints, to publish that one.

    Raises:
        ValueError: the source is not what is asked of it, an argument has no meaning for it, or a run's weight is not
            finite.
    """
    folder = Path(source)
    on_hub = position_embeddings and not folder.is_dir()
    if on_hub or kind_of(folder) == "checkpoint":
        _refuse({"--base": base, "--merge": merge, "--checkpoint": checkpoint}, f"{source}, which is no training run")
        if position_embeddings:
            return positions_publication(source, repo_id, licence, token, workshop)
        return checkpoint_publication(folder, repo_id, licence)
    run = open_run(folder, checkpoint)
    check_finite(run)
    reported = run.run["base_model"]
    if (merge or position_embeddings) and base is None and local_base(reported):
        named = BaseModel(Path(reported["name_or_path"]).resolve().name, None)
    else:
        named = pinned_base(reported, base, token)
    if position_embeddings:
        return trained_positions_publication(run, named, repo_id, licence, token, workshop)
    build = merged_publication if merge else adapter_publication
    return build(run, folder, repo_id, named, licence, workshop)


def _refuse(given: dict, what: str) -> None:
    without_meaning = [flag for flag, value in given.items() if value]
    if without_meaning:
        raise ValueError(f"{', '.join(without_meaning)} has no meaning for {what}.")
