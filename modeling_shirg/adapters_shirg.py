"""Adapters: the base weights and the system that an adapter was trained on, and whether it fits a model.

An adapter is PEFT's two files and, beside them, run.json: the base model with the fingerprint of its weights, and the
system. Without run.json only names and shapes can be checked.
"""

import json
import os
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ResolvedRevision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import cached_file, find_adapter_config_file, is_peft_available, logging

from .fingerprint_shirg import fingerprint

logger = logging.get_logger(__name__)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
RUN_FILE = "run.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_RUN_FACTS = {"base_model", "prune_method", "config_overrides", "config"}
_REMEDY = "Load the adapter itself with from_pretrained, which takes the base and the system of its training."
# Config fields of the checkpoint and of its loss. All other fields make the system.
_NOT_SYSTEM = {
    "vision_config",
    "text_config",
    "relevance_text_config",
    "lavida_views",
    "image_token_id",
    "mask_token_id",
    "infill_token_id",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "prefix_lm_loss",
    "loss_weighting",
}


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder or on the Hub."""

    name: str  # the folder or the Hub id
    hub: dict[str, Any] = field(repr=False)  # the arguments that find its files on the Hub; may hold a token
    config: dict[str, Any]  # adapter_config.json
    run: dict[str, Any] | None  # run.json

    @classmethod
    def open(cls, name: str, **hub) -> "Adapter | None":
        """The adapter at `name`; `None` if there is none. Files that do not parse are a `ValueError`."""
        config_file = find_adapter_config_file(name, **hub)
        if config_file is None:
            return None
        config = _read_object(config_file)
        run_file = cached_file(name, RUN_FILE, _raise_exceptions_for_missing_entries=False, **hub)
        return cls(str(name), hub, config, None if run_file is None else read_run(run_file))

    @property
    def base_name(self) -> str:
        """Folder or Hub id of the base model; a `ValueError` if adapter_config.json does not name it."""
        name = self.config.get("base_model_name_or_path")
        if not isinstance(name, str):
            raise ValueError(
                f"{ADAPTER_CONFIG} of {self.name} names no base model (base_model_name_or_path={name!r}): load the "
                "base and then model.load_adapter(...)."
            )
        return name

    @property
    def base_revision(self) -> str | None:
        """Commit of the base model on the Hub; `None` for a folder, or if it is not known."""
        return self.config.get("revision") if self.run is None else self.run["base_model"]["revision"]

    @property
    def saved_modules(self) -> list[str]:
        """Names of the modules that the adapter replaces as a whole."""
        return self.config.get("modules_to_save") or []

    def system(self, base_config: PreTrainedConfig) -> PreTrainedConfig:
        """The config of the training, on a base of `base_config`; a `ValueError` if its geometry is another one."""
        if self.run is None:
            return base_config
        config = base_config.with_preset(self.run["prune_method"], **self.run["config_overrides"])
        if differences := _differences(self.run["config"], geometry_facts(config)):
            raise ValueError(
                f"{self.name} was trained with {differences}: prune_method={self.run['prune_method']!r} gives another "
                f"geometry on this base ({base_config.name_or_path or 'unnamed'}). Is it the right base?"
            )
        return config

    def check_base(self, model: nn.Module) -> None:
        """Raises a `ValueError` if the weights of `model` are not those of the training."""
        wanted = None if self.run is None else self.run["base_model"]["fingerprint"]
        found = None if wanted is None else fingerprint(model)
        if found is None:
            reason = "has no run.json" if wanted is None else "meets quantized or offloaded weights"
            logger.warning(f"{self.name} {reason}: its base is not checked.")
        elif found != wanted:
            base = self.base_name if self.base_revision is None else f"{self.base_name} at {self.base_revision}"
            raise ValueError(
                f"{self.name} was trained on other base weights, those of {base} (fingerprint {wanted[:12]}); this "
                f"model's are {model.config.name_or_path or 'unnamed'} (fingerprint {found[:12]}). {_REMEDY}"
            )

    def check_system(self, config: PreTrainedConfig, any_system: bool) -> None:
        """Raises a `ValueError` with the fields in which `config` is another system; `any_system` only warns."""
        differences = _differences(_system_facts(self.system(config)), _system_facts(config))
        if differences and not any_system:
            raise ValueError(f"{self.name} was trained under another system: {differences}. {_REMEDY}")
        if differences:
            logger.warning(f"{self.name} was trained under another system: {differences}.")

    def check(self, model: nn.Module, any_system: bool = False) -> None:
        """Raises a `ValueError` unless `model` has the base weights and, without `any_system`, the system."""
        self.check_base(model)
        self.check_system(model.config, any_system)


@dataclass(frozen=True)
class Resolved:
    """What `from_pretrained` has to load."""

    adapter: Adapter | None
    path: Any  # folder or Hub id of the base model
    saved: PreTrainedConfig  # the config that is saved there
    config: PreTrainedConfig  # the config to build
    chosen: bool  # whether the caller chose fields of the system
    kwargs: dict[str, Any]  # the other arguments


def resolve(config_class: type, path, config: PreTrainedConfig | str | None, kwargs: dict[str, Any]) -> Resolved:
    """What `from_pretrained(path, config=config, **kwargs)` means.

    An adapter is loaded on its own base, at the commit of its training unless `kwargs` name another, under the system
    of its training. Chosen fields win: those in `kwargs`, or those in which `config` differs from the base's own.
    """
    adapter, path, kwargs = _split_adapter(path, dict(kwargs))
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    saved = config_class.from_pretrained(path, **hub)
    if isinstance(config, PreTrainedConfig):
        chosen = _differing(config, saved)
    else:
        chosen = [name for name in kwargs if name in config_class.__annotations__]
        config = config_class.from_pretrained(config or path, **hub, **{name: kwargs.pop(name) for name in chosen})
    if adapter is not None and "prune_method" not in chosen:
        config = _replaced(config, adapter.system(saved), except_for=chosen)
        if other := _differing(config, saved):
            logger.warning_once(
                f"{adapter.name} was trained under prune_method={config.prune_method!r}, which is another system than "
                f"its base's own, {saved.prune_method!r} (in {', '.join(other)}): the adapter's is loaded. Take its "
                "processor too: a pipeline that is given none takes the base's."
            )
    return Resolved(adapter, path, saved, config, bool(chosen), kwargs)


def _split_adapter(path, kwargs: dict[str, Any]) -> tuple[Adapter | None, Any, dict[str, Any]]:
    """The adapter at `path`, if there is one, and the base model to load with its arguments."""
    given = dict(kwargs.get("adapter_kwargs") or {})
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    # The Auto classes have looked for an adapter, and hand over its base as `path` and the base's revision.
    from_auto = kwargs.get("_from_auto", False)
    name = given.pop("_adapter_model_path", None if from_auto else path)
    embedded = name is not None and os.path.isfile(os.path.join(name, "config.json"))
    adapter = None if name is None or embedded else Adapter.open(name, **{**hub, **given})
    if adapter is None:
        return None, path, kwargs
    if not is_peft_available():
        raise ImportError(f"{name} is an adapter, which needs peft: pip install peft")
    base = path if from_auto else adapter.base_name
    if os.path.isabs(base) and not os.path.isdir(base):
        raise ValueError(
            f"{name} was trained on the folder {base}, which is not here. Publish it with `shirg push RUN REPO "
            "--base REPO_ID`, so that others find its base, or load the base and then model.load_adapter(...)."
        )
    revision = kwargs.get("revision") if from_auto else None
    requested = revision.initial if isinstance(revision, ResolvedRevision) else revision
    rest = {name: value for name, value in kwargs.items() if name != "adapter_kwargs"}
    if not from_auto:
        rest.pop("subfolder", None)
    return adapter, base, {**rest, "revision": requested or (None if os.path.isdir(base) else adapter.base_revision)}


def system_overrides(config: PreTrainedConfig, base_config: PreTrainedConfig) -> dict[str, Any]:
    """The fields to give `base_config.with_preset(config.prune_method, ...)` so that it is the system of `config`."""
    preset = base_config.with_preset(config.prune_method)
    return {name: getattr(config, name) for name in _differing(config, preset)}


def geometry_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """View sizes in pixels, grids in patches per side, and counts of tokens of one image, for reports."""
    return {
        "image_size": config.vision_config.image_size,
        "patch_size": config.vision_config.patch_size,
        "base_grid": config.base_grid,
        "view_policy": config.view_policy,
        "num_base_views": config.num_base_views,
        "fovea_size": config.fovea_size,
        "fovea_grid": config.fovea_grid,
        "pooled_grid_size": config.pooled_grid_size,
        "selection_budget": config.selection_budget,
        "num_image_tokens": config.num_image_tokens,
    }


def attach(model: nn.Module, source: str, name: str, trainable: bool, hub: dict[str, Any]) -> None:
    """Put the adapter at `source` into `model` as `name` and use it alone.

    PEFT is called directly: the adapter methods of transformers 5.24 ask for a PEFT release newer than 0.21.

    Raises:
        ValueError: tensors are missing, have no place in the model, or have other shapes than the model's; the model
            is left without the adapter.
    """
    from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.functional import delete_adapter
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    file = cached_file(source, ADAPTER_WEIGHTS, _raise_exceptions_for_missing_entries=False, **hub)
    if file is None:
        raise ValueError(f"{source} has no {ADAPTER_WEIGHTS}: only safetensors are read.")
    try:
        weights = {key.removeprefix("base_model.model."): weight for key, weight in load_file(file).items()}
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file ({error}). Is the download complete?") from None
    config = PeftConfig.from_pretrained(source, **hub)
    config.inference_mode = not trainable
    inject_adapter_in_model(config, model, name)
    model._hf_peft_config_loaded = True
    try:
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
        missing = sorted(key for key in result.missing_keys if f".{name}." in key)
        misfit = f"missing: {missing[:3]}, without a place: {result.unexpected_keys[:3]}"
        fits = not missing and not result.unexpected_keys
    except (KeyError, RuntimeError) as error:  # PEFT's for a missing whole module, torch's for other shapes
        fits, misfit = False, f"{type(error).__name__}: {error}"
    if not fits:
        delete_adapter(model, name, PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type])
        raise ValueError(
            f"{source} does not fit prune_method={model.config.prune_method!r} on this base ({misfit}). {_REMEDY}"
        )
    activate(model, name, trainable)


def activate(model: nn.Module, name: str, trainable: bool) -> None:
    """Use adapter `name` alone. Modules that it does not replace are the base's, whatever other adapters replace."""
    from peft.functional import set_adapter

    set_adapter(model, name, inference_mode=not trainable)


def _system_fields(config: PreTrainedConfig) -> list[str]:
    return [name for name in type(config).__annotations__ if name not in _NOT_SYSTEM]


def _differing(config: PreTrainedConfig, other: PreTrainedConfig) -> list[str]:
    """Fields of the system in which the configs differ."""
    return [name for name in _system_fields(config) if getattr(config, name) != getattr(other, name)]


def _replaced(config: PreTrainedConfig, system: PreTrainedConfig, except_for: list[str]) -> PreTrainedConfig:
    """`config` with all system fields of `system` but `except_for`."""
    replaced = deepcopy(config)
    for name in set(_system_fields(config)) - set(except_for):
        setattr(replaced, name, getattr(system, name))
    replaced.validate()
    return replaced


def _system_facts(config: PreTrainedConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _system_fields(config)} | geometry_facts(config)


def _differences(trained: dict[str, Any], here: dict[str, Any]) -> str:
    """The facts of a training that are others here, for an error message."""
    known = {name: value for name, value in trained.items() if name in here}
    return "; ".join(f"{name}={value!r}, here {here[name]!r}" for name, value in known.items() if value != here[name])


def _read_object(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as opened:
            value = json.load(opened)
    except ValueError as error:
        raise ValueError(f"{path} does not parse: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not a JSON object.")
    return value


def read_run(path: str) -> dict[str, Any]:
    """The run.json at `path`, with the facts that an adapter is loaded by."""
    run = _read_object(path)
    missing = sorted(_RUN_FACTS - set(run))
    if missing:
        raise ValueError(f"{path} has no {', '.join(missing)}: is it the run.json that `shirg train` writes?")
    return run
