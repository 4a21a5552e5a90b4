"""From a run, a checkpoint or a base table to what is published of it."""

import json
from math import prod
from pathlib import Path

from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from transformers.utils import logging

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.adapters_shirg import ADAPTER_CONFIG, ADAPTER_WEIGHTS, RUN_FILE, Adapter, geometry_facts
from modeling_shirg.training.finite import first_not_finite
from modeling_shirg.training.footprints import without_known_warnings

from .base_model import BaseModel
from .cards import MODEL_TAGS, in_words, render
from .publication import CARD, Publication
from .run_card import eval_results_file, licence_metadata, licence_sentence, published_run, run_card
from .stored_weights import StoredWeights

logger = logging.get_logger(__name__)

# Of a checkpoint's folder only these are published: nothing that can run by being opened.
_SUFFIXES = {".safetensors", ".json", ".jinja", ".py", ".md", ".txt", ".model"}
_SUBFOLDER = "relevance_tokenizer"
_NEEDED = ("config.json", "processor_config.json", "modeling_shirg_lavida.py", "processing_shirg_lavida.py")


def adapter_publication(
    adapter: Adapter, folder: Path, repo_id: str, base: BaseModel, licence: str | None, workshop: Path
) -> Publication:
    """The adapter of a run with its processor, its report and a card.

    Args:
        adapter: of a run, or of one of its checkpoints.
        folder: of the run.
        repo_id: where it will be.
        base: where its base can be loaded from.
        licence: identifier of its licence; by default the base's.
        workshop: an empty folder for files that are made.

    Raises:
        ValueError: the processor of the run is not that of its system.
    """
    run = published_run(adapter.run, base)
    processor = ShirgLavidaProcessor.from_pretrained(folder)
    if processor.num_image_tokens != run["config"]["num_image_tokens"]:
        raise ValueError(
            f"The processor in {folder} writes {processor.num_image_tokens} image tokens, the run was trained with "
            f"{run['config']['num_image_tokens']}: is it the processor of this run?"
        )
    processor.save_pretrained(workshop)
    config = {**adapter.config, "base_model_name_or_path": base.name, "revision": base.revision}
    files = {
        **_files_of(workshop),
        ADAPTER_WEIGHTS: Path(adapter.name) / ADAPTER_WEIGHTS,
        ADAPTER_CONFIG: _json(config),
        RUN_FILE: _json(run),
        **eval_results_file(run),
    }
    system = {"prune_method": run["prune_method"], **run["config_overrides"]}
    card = run_card(
        "adapter",
        repo_id,
        run,
        base,
        licence,
        {"tags": [*MODEL_TAGS, "peft", "lora"], "base_model_relation": "adapter" if base.revision else None},
        saved_modules=adapter.saved_modules,
        system_arguments=", ".join(f"{name}={_literal(value)}" for name, value in system.items()),
    )
    return Publication(card, files)


def merged_publication(
    adapter: Adapter, folder: Path, repo_id: str, base: BaseModel, licence: str | None, workshop: Path
) -> Publication:
    """The model that a run's adapter makes of its base, which is loaded from where the run had it.

    Args, raises: as `adapter_publication`; and a `ValueError` where the base is not what the adapter was trained on.
    """
    run = published_run(adapter.run, base)
    saved = ShirgLavidaConfig.from_pretrained(adapter.base_name, revision=adapter.base_revision)
    model = ShirgLavidaForConditionalGeneration.from_pretrained(
        adapter.base_name, revision=adapter.base_revision, config=adapter.system(saved)
    )
    adapter.check(model)
    with without_known_warnings():
        merged = PeftModel.from_pretrained(model, adapter.name).merge_and_unload()
    _refuse_lost(f"{adapter.name} merged into {adapter.base_name}", first_not_finite(merged.named_parameters()))
    merged.save_pretrained(workshop)
    ShirgLavidaProcessor.from_pretrained(folder).save_pretrained(workshop)
    card = run_card(
        "merged",
        repo_id,
        run,
        base,
        licence,
        {"base_model_relation": "finetune" if base.revision else None},
        parameters=in_words(merged.num_parameters()),
        image="photo.png",
        question="Describe the image in detail.",
    )
    return Publication(card, {**_files_of(workshop), RUN_FILE: _json(run), **eval_results_file(run)})


def checkpoint_publication(folder: Path, repo_id: str, licence: str | None) -> Publication:
    """A whole checkpoint with the card that it has, or a card of what its config says.

    Raises:
        ValueError: the folder is no whole SHIRG-LaViDa repository.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {', '.join(missing)}: it is no whole repository. Save model and processor with "
            "save_pretrained, which writes the code files too, or give the folder of a training run."
        )
    config = ShirgLavidaConfig.from_pretrained(folder)
    stored = StoredWeights.in_folder(folder)
    kinds = stored.kinds()
    files = _files_of(folder)
    left_out = sorted(path.name for path in folder.iterdir() if path.name not in files and path.name != _SUBFOLDER)
    if left_out:
        logger.warning(f"Not published: {', '.join(left_out)}")
    if CARD in files:
        card = ModelCard.load(files.pop(CARD))
        if licence is not None:
            card.data.license = licence
        return Publication(card, files)
    card = render(
        "base",
        licence_metadata(licence, {}),
        title=repo_id.split("/")[-1],
        parameters=in_words(sum(prod(shape) for _, shape in kinds)),
        dtypes=", ".join(sorted({code for code, _ in kinds})),
        config=config,
        geometry=geometry_facts(config),
        licence=licence_sentence(licence, {}, "The folder"),
        source=repo_id,
        revision="main",
        image="photo.png",
        question="Describe the image in detail.",
    )
    return Publication(card, files)


def check_finite(adapter: Adapter) -> None:
    """Raises a `ValueError` that names the first tensor of the adapter with a NaN or an infinity."""
    weights = load_file(Path(adapter.name) / ADAPTER_WEIGHTS)
    _refuse_lost(adapter.name, first_not_finite(sorted(weights.items())))


def _refuse_lost(name: str, tensor: str | None) -> None:
    if tensor is not None:
        raise ValueError(
            f"{name}: {tensor} holds values that are not finite, so the model is lost and is not published. Take an "
            "earlier checkpoint (--checkpoint NAME), or train again with a lower learning rate."
        )


def kind_of(folder: Path) -> str:
    """`"run"` for a folder with an adapter or a run's report, `"checkpoint"` for one with a whole model.

    Raises:
        ValueError: it has neither, or both.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: give the folder of a training run or of a whole checkpoint.")
    found = [
        kind for kind, name in (("run", ADAPTER_CONFIG), ("checkpoint", "config.json")) if (folder / name).is_file()
    ]
    if len(found) == 1:
        return found[0]
    if not found and (folder / RUN_FILE).is_file():
        return "run"
    what = f"both {ADAPTER_CONFIG} and config.json" if found else f"neither {ADAPTER_CONFIG} nor config.json"
    raise ValueError(f"{folder} has {what}: give the folder of a training run or of a whole checkpoint.")


def _files_of(folder: Path) -> dict[str, Path]:
    paths = [*folder.iterdir(), *(folder / _SUBFOLDER).glob("*")]
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(paths)
        if path.is_file() and path.suffix in _SUFFIXES and not path.name.startswith(".")
    }


def _json(value: dict) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _literal(value) -> str:
    """A field's value as Python code, strings in double quotes as in the rest of a card."""
    return json.dumps(value) if isinstance(value, str) else repr(value)
