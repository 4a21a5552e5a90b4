"""Position embeddings for larger views, published without a model."""

from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from torch import nn

from configuration_shirg import GEOMETRIES, ShirgLavidaConfig
from configuration_shirg.geometry_shirg import grid_side
from configuration_shirg.presets_shirg import geometry_of
from modeling_shirg.adapters_shirg import ADAPTER_WEIGHTS, Adapter
from modeling_shirg.fingerprint_shirg import plain_name
from modeling_shirg.vision_shirg import FovealPositionEmbedding

from .base_model import BaseModel, parse_repo
from .cards import render
from .licences import licence_fields
from .publication import Publication
from .run_card import base_text, licence_metadata, licence_sentence
from .stored_weights import StoredWeights

POSITIONS = "position_embeddings.safetensors"
_BASE = "model.vision_tower.vision_model.embeddings.position_embedding.weight"
_FOVEAL = "model.vision_tower.foveal_position_embedding.weight"
# The views of a geometry that are larger than its base view.
_SIZES = ("fovea_size", "whole_size")


def positions_publication(
    model: str, repo_id: str, licence: str | None, token: str | None, workshop: Path
) -> Publication:
    """The base table of `model` at the grids of its geometry's larger views; no other weights are read.

    A grid that the checkpoint has a table of its own for, which may be trained, is published as it is there.

    Args:
        model: a checkpoint's folder, or `REPO_ID[@REVISION]`.
        repo_id: where they will be.
        licence: identifier of its licence; by default the model's.
        token: of the Hub.
        workshop: an empty folder for the file.
    """
    base, stored, config = _open(model, token)
    own = {config.fovea_grid: stored.read(_FOVEAL)} if _FOVEAL in stored else {}
    return _publication(base, config, stored.read(_BASE), own, "the checkpoint's own", repo_id, licence, workshop)


def trained_positions_publication(
    adapter: Adapter, base: BaseModel, repo_id: str, licence: str | None, token: str | None, workshop: Path
) -> Publication:
    """The table that a run has trained, and its base's at the other grids.

    Args:
        adapter: of the run.
        base: its base model.
        repo_id, licence, token, workshop: as for `positions_publication`.

    Raises:
        ValueError: the run trained none.
    """
    trained = {plain_name(name): value for name, value in load_file(Path(adapter.name) / ADAPTER_WEIGHTS).items()}
    if _FOVEAL not in trained:
        raise ValueError(
            f"{adapter.name} has no foveal_position_embedding: its run trained none. Those of its base are published "
            f"with `shirg push {adapter.base_name} {repo_id} --position_embeddings`."
        )
    _, stored, saved = _open(adapter.base_name if base.revision is None else f"{base.name}@{base.revision}", token)
    config = adapter.system(saved)
    own = {config.fovea_grid: trained[_FOVEAL]}
    return _publication(base, config, stored.read(_BASE), own, "trained by the run", repo_id, licence, workshop)


def _publication(
    base: BaseModel,
    config: ShirgLavidaConfig,
    table_ND: torch.Tensor,
    own: dict[int, torch.Tensor],
    whose: str,
    repo_id: str,
    licence: str | None,
    workshop: Path,
) -> Publication:
    """The tables in `own` by their grids, `whose` they are for the card, and interpolated ones at the other grids."""
    tables, rows = {}, []
    for pixels, grid in _grids(config).items():
        name = f"foveal_position_embedding.{grid}x{grid}"
        tables[name] = own[grid] if grid in own else interpolated(table_ND, grid)
        origin = whose if grid in own else "interpolated"
        rows.append({"name": name, "rows": grid * grid, "pixels": pixels, "grid": grid, "origin": origin})
    save_file(tables, workshop / POSITIONS, metadata={"format": "pt"})
    card = render(
        "positions",
        {
            **licence_metadata(licence, base.licence),
            "base_model": base.name if base.revision else None,
            "pipeline_tag": None,
            "tags": ["siglip", "position-embeddings", "shirg"],
        },
        title=f"Position embeddings of {base.name.split('/')[-1]}",
        tables=rows,
        width=table_ND.shape[1],
        dtype=str(table_ND.dtype).removeprefix("torch."),
        base_grid=config.base_grid,
        image_size=config.vision_config.image_size,
        patch_size=config.vision_config.patch_size,
        base_text=base_text(base),
        file=POSITIONS,
        licence=licence_sentence(licence, base.licence, "The model"),
        source=repo_id,
        revision="main",
    )
    return Publication(card, {POSITIONS: workshop / POSITIONS}, is_model=False)


def interpolated(table_ND: torch.Tensor, grid: int) -> torch.Tensor:
    """A square grid's position table (N, D) at another grid, (grid * grid, D), as loading a model derives it."""
    base = nn.Embedding.from_pretrained(table_ND)
    return FovealPositionEmbedding(grid, base).to(table_ND.dtype).interpolated_base().contiguous()


def _grids(config: ShirgLavidaConfig) -> dict[int, int]:
    """View size in pixels to patches per side, of the geometry's larger views and of the config's own."""
    geometry = GEOMETRIES[geometry_of(config.vision_config.image_size)]
    sizes = {geometry[name] for name in _SIZES} | ({config.fovea_size} if config.fovea_size else set())
    return {size: grid_side(size, config.vision_config.patch_size) for size in sorted(sizes)}


def _open(model: str, token: str | None) -> tuple[BaseModel, StoredWeights, ShirgLavidaConfig]:
    folder = Path(model)
    if folder.is_dir():
        config = ShirgLavidaConfig.from_pretrained(folder)
        return BaseModel(folder.resolve().name, None), StoredWeights.in_folder(folder), config
    name, revision = parse_repo(model)
    info = HfApi(token=token).model_info(name, revision=revision)
    licence = licence_fields(info.card_data.to_dict() if info.card_data else {})
    config = ShirgLavidaConfig.from_pretrained(name, revision=info.sha, token=token)
    return BaseModel(name, info.sha, licence), StoredWeights.on_hub(name, info.sha, token), config
