"""From a run, a checkpoint or a position table to what is published of it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers.trainer import TRAINER_STATE_NAME

from configuration_shirg import GEOMETRIES, ShirgLavidaConfig, ShirgLavidaProcessor
from configuration_shirg.geometry_shirg import grid_side
from configuration_shirg.presets_shirg import geometry_of
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.adapters_shirg import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RUN_FILE, Adapter, read_run
from modeling_shirg.running.files import write_json
from modeling_shirg.training.footprints import without_known_warnings
from modeling_shirg.vision_shirg import resampled_positions

from .cards import MODEL_TAGS, eval_results, render
from .checkpoint import Checkpoint
from .push import CARD, Publication

POSITIONS = "position_embeddings.safetensors"
_BASE_TABLE = "model.vision_tower.vision_model.embeddings.position_embedding.weight"
# Published of a folder: file types that run nothing when they are opened, and the code files.
_SUFFIXES = {".safetensors", ".json", ".jinja", ".py", ".md", ".txt", ".model"}
_NEEDED = ("config.json", "processor_config.json", "modeling_shirg_lavida.py", "processing_shirg_lavida.py")
# The value of a flag such as --hub_token, and a token of the Hub.
_TOKEN = re.compile(r"(--?\w*token[= ]+|\bhf_)[^\s'\",]+", flags=re.IGNORECASE)
# An absolute path inside a text, but no URL and no fraction.
_PATH = re.compile(r"(?<![\w./~-])~?/(?!/)(?:[^\s'\",:=/]+/)*([^\s'\",:=/]+)/?")


def open_run(folder: Path, checkpoint: str | None = None) -> Adapter:
    """The whole adapter of a finished run, or of one of its checkpoints, with the report; its values are finite."""
    if not (folder / RUN_FILE).is_file():
        raise ValueError(f"{folder} has no {RUN_FILE}: give the folder of a whole run, and --checkpoint NAME.")
    run = read_run(str(folder / RUN_FILE))
    source = folder if checkpoint is None else folder / Path(checkpoint).name
    state = source / TRAINER_STATE_NAME  # the file of a checkpoint that the Trainer writes last
    if checkpoint is not None and state.is_file():
        run |= _facts_of_step(json.loads(state.read_text(encoding="utf-8")), source.name)
    elif checkpoint is not None or run.get("status") != "finished":
        complete = sorted(file.parent.name for file in folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}"))
        raise ValueError(
            f"{source} is not complete (status {run.get('status')!r}). The command that started the run continues it; "
            f"or publish a complete checkpoint by --checkpoint NAME: {', '.join(complete) or 'there is none'}."
        )
    adapter = Adapter.open(str(source))
    if adapter is None:
        raise ValueError(f"{source} has no {ADAPTER_CONFIG}, so there is no adapter.")
    weights = load_file(source / ADAPTER_WEIGHTS)
    _check_finite(adapter.name, weights)
    lacking = [module for module in adapter.saved_modules if not any(f".{module}." in name for name in weights)]
    if lacking:
        raise ValueError(f"{source / ADAPTER_WEIGHTS} lacks its {', '.join(lacking)}, which is in modules_to_save.")
    return replace(adapter, run=run)


def run_publication(
    run: Adapter, folder: Path, repo_id: str, base: Checkpoint, licence: str | None, workshop: Path, merge: bool
) -> Publication:
    """The adapter of a run, or the model that it makes of its base, with processor, report and card.

    Args:
        run: of `open_run`.
        folder: of the run.
        repo_id: repository of the publication.
        base: where the base can be loaded from.
        licence: identifier of the licence; by default the base's.
        workshop: an empty folder for files that are made.
        merge: publish the merged model.
    """
    base_model = {**run.run["base_model"], "name_or_path": base.label, "revision": base.revision}
    report = {**publishable(run.run), "base_model": base_model}
    facts = {"run": report, "is_toy": report["config"]["image_size"] == GEOMETRIES["toy"]["image_size"]}
    if merge:
        facts["parameters"] = _save_merged(run, workshop)
    else:
        facts["saved_modules"] = run.saved_modules
        named = {**run.config, "base_model_name_or_path": base.name, "revision": base.revision}
        write_json(workshop / ADAPTER_CONFIG, named)
        shutil.copy(Path(run.name, ADAPTER_WEIGHTS), workshop)
    ShirgLavidaProcessor.from_pretrained(folder).save_pretrained(workshop)
    write_json(workshop / RUN_FILE, report)
    metadata = {
        "tags": [*MODEL_TAGS] if merge else [*MODEL_TAGS, "peft", "lora"],
        "base_model_relation": ("finetune" if merge else "adapter") if base.revision else None,
        "datasets": [source["dataset_id"] for source in report["data"] if source.get("dataset_id")] or None,
        "model_name": repo_id.split("/")[-1],
        "eval_results": eval_results(report["evaluation"]),
    }
    card = render("merged" if merge else "adapter", base, licence, repo_id, metadata, **facts)
    return Publication(card, _files_of(workshop))


def checkpoint_publication(folder: Path, repo_id: str, licence: str | None) -> Publication:
    """A whole checkpoint with the card in its folder, or else a card of what the config says."""
    files, base = _files_of(folder), Checkpoint.find(str(folder))
    missing = [name for name in _NEEDED if name not in files]
    if missing:
        raise ValueError(
            f"{folder} has no {', '.join(missing)}: it is no whole repository. Save model and processor with "
            "save_pretrained, which writes the code files too, or give the folder of a training run."
        )
    files |= {name: folder / name for name in base.headers.files_metadata}  # an error for a file that is cut off
    if CARD not in files:
        return Publication(render("base", base, licence, repo_id, config=base.config()), files)
    card = ModelCard.load(files.pop(CARD))
    card.data.license = licence or card.data.license
    return Publication(card, files)


def positions_publication(base: Checkpoint, repo_id: str, licence: str | None, workshop: Path) -> Publication:
    """The position table of a checkpoint at the larger views of its geometry; arguments as of `run_publication`."""
    config, table_ND = base.config(), base.read(_BASE_TABLE)[0]
    sizes = GEOMETRIES[geometry_of(config.vision_config.image_size)]
    sizes = sorted({sizes["fovea_size"], sizes["whole_size"], config.fovea_size or sizes["fovea_size"]})
    grids = {size: grid_side(size, config.vision_config.patch_size) for size in sizes}
    tables = {
        f"foveal_position_embedding.{grid}x{grid}": resampled_positions(table_ND, grid).to(table_ND.dtype).contiguous()
        for grid in grids.values()
    }
    save_file(tables, workshop / POSITIONS, metadata={"format": "pt"})
    metadata = {"pipeline_tag": None, "tags": ["siglip", "position-embeddings", "shirg"]}
    card = render("positions", base, licence, repo_id, metadata, config=config, grids=grids, file=POSITIONS)
    return Publication(card, {POSITIONS: workshop / POSITIONS}, is_model=False)


def publishable(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what is this machine's own: absolute paths are cut to their last part, tokens are hidden."""
    return json.loads(_PATH.sub(r"\1", _TOKEN.sub(r"\1***", json.dumps(report, ensure_ascii=False))))


def _facts_of_step(state: dict, checkpoint: str) -> dict[str, Any]:
    """Facts of a report that differ for a checkpoint; the run's evaluation is of other weights."""
    logged = {name: value for entry in state["log_history"] for name, value in entry.items() if name.endswith("loss")}
    metrics = {"eval_loss": logged.get("eval_loss"), "train_loss": logged.get("loss")}
    facts = {"checkpoint": checkpoint, "steps": state["global_step"], "epochs": state["epoch"], "seconds": None}
    return {**facts, "metrics": metrics, "evaluation": []}


def _save_merged(run: Adapter, folder: Path) -> int:
    """Save the merged model; returns the number of its parameters."""
    base = {"pretrained_model_name_or_path": run.base_name, "revision": run.base_revision}
    config = run.system(ShirgLavidaConfig.from_pretrained(**base))
    model = ShirgLavidaForConditionalGeneration.from_pretrained(**base, config=config)
    run.check(model)
    with without_known_warnings():
        merged = PeftModel.from_pretrained(model, run.name).merge_and_unload()
    _check_finite(f"{run.name} merged", dict(merged.named_parameters()))
    merged.save_pretrained(folder)
    return merged.num_parameters()


def _check_finite(name: str, weights: dict) -> None:
    lost = next((tensor for tensor in sorted(weights) if not weights[tensor].isfinite().all()), None)
    if lost is not None:
        raise ValueError(
            f"{name}: {lost} holds values that are not finite, so the model is not published. Take an earlier "
            "checkpoint (--checkpoint NAME), or train again with a lower learning rate."
        )


def _files_of(folder: Path) -> dict[str, Path]:
    paths = sorted([*folder.glob("[!.]*"), *folder.glob("relevance_tokenizer/*")])
    return {path.relative_to(folder).as_posix(): path for path in paths if path.is_file() and path.suffix in _SUFFIXES}
