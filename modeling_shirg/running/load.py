"""Loading a checkpoint or an adapter for a command: the bundled one by default, any folder or Hub id, any preset."""

import json
import logging
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from configuration_shirg.presets_shirg import did_you_mean
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.adapters_shirg import Adapter, Resolved, resolve
from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.extras import need

BUNDLED = "shirg-lavida-tiny"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Model type of an original LaViDa checkpoint, for which the config's own error names `shirg convert`.
_ORIGINAL = "llava_llada"
# Arguments of bitsandbytes for each value of `quantize`.
QUANTIZATIONS = {"int8": {"load_in_8bit": True}, "int4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}


@dataclass
class Loaded:
    """A model in evaluation mode with the processor of its preset, and the name that it was loaded by."""

    model: ShirgLavidaForConditionalGeneration
    processor: ShirgLavidaProcessor
    name: str

    def as_class(self, model_class: type[ShirgLavidaForConditionalGeneration]) -> "Loaded":
        """The same with the methods of a subclass that has the same weights."""
        self.model.__class__ = model_class
        return self


def load(
    model: str | None = None,
    prune_method: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    text_relevance: str | None = None,
    options: dict[str, Any] | None = None,
    revision: str | None = None,
    quantize: str | None = None,
) -> Loaded:
    """Load a checkpoint, or an adapter with its base, under a preset.

    Args:
        model: folder or Hub id of a checkpoint or of an adapter; `None` is the bundled checkpoint.
        prune_method: a preset; `None` is the checkpoint's own, or the system that the adapter was trained for.
        device: `auto`, or a device of torch.
        dtype: `auto` is the stored one.
        text_relevance: how patches are compared with the question; `None` is the checkpoint's own way.
        options: other fields of the config, such as an ablation's.
        revision: branch, tag or commit of `model` on the Hub.
        quantize: type of the language model's matrices, one of `QUANTIZATIONS`; all other weights have `dtype`.

    Raises:
        ValueError: there is no such checkpoint, its files are damaged, the adapter does not fit, or an argument is
            unknown or does not fit the checkpoint or the machine.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}. Known: auto, {', '.join(DTYPES)}.")
    target = resolve_device(device)
    weights = {"dtype": dtype} | ({} if quantize is None else _quantization(quantize, target))
    fields = {"prune_method": prune_method, "text_relevance": text_relevance}
    fields = {name: value for name, value in fields.items() if value is not None} | (options or {})
    with ExitStack() as stack:
        source = model or str(stack.enter_context(as_file(files("shirg_hub_card") / BUNDLED)))
        config = _resolved(source, revision, fields).config
        method = METHODS.get(config.selection_method)
        if text_relevance is not None and (method is None or "relevance" not in method.needs):
            raise ValueError(
                f"text_relevance={text_relevance!r} is a choice of presets that score patches; "
                f"prune_method={config.prune_method!r} scores none."
            )
        saved = ShirgLavidaProcessor.from_pretrained(source, revision=revision)
        processor = ShirgLavidaProcessor.from_config(
            config, saved.tokenizer, saved.chat_template, relevance_tokenizer=saved.relevance_tokenizer
        )
        try:
            network = ShirgLavidaForConditionalGeneration.from_pretrained(
                source, revision=revision, **weights, **fields
            )
        except SafetensorError as error:
            raise ValueError(f"The weights of {source} cannot be read ({error}). Is the download complete?") from None
    return Loaded(network.to(target).eval(), processor, model or f"{BUNDLED} (bundled)")


def checkpoint_folder(model: str | None, revision: str | None = None) -> Path:
    """The folder with the files of `model`, an argument of `load`; files of the Hub are downloaded."""
    if model is None:
        return Path(str(files("shirg_hub_card") / BUNDLED))
    return Path(model) if Path(model).is_dir() else Path(snapshot_download(model, revision=revision))


def parse_options(entries: list[str]) -> dict[str, Any]:
    """Config fields from `FIELD=VALUE` of a command line; values are JSON, or else plain text.

    Raises:
        ValueError: an entry has no `=`, or names no field.
    """
    options = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise ValueError(f"--option {entry!r}: write it as FIELD=VALUE, for example selection_budget=410.")
        if name not in ShirgLavidaConfig.__annotations__:
            hint = did_you_mean(name, ShirgLavidaConfig.__annotations__)
            raise ValueError(f"--option {entry!r}: ShirgLavidaConfig has no field {name!r}.{hint}")
        try:
            options[name] = json.loads(value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def resolve_device(device: str) -> torch.device:
    """`auto` is the accelerator if there is one, else the CPU.

    Raises:
        ValueError: torch does not know the device, or the machine does not have it.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        return accelerator or torch.device("cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"Unknown device {device!r}: {str(error).splitlines()[0]}") from None
    missing = accelerator is None or chosen.type != accelerator.type
    if chosen.type != "cpu" and (missing or (chosen.index or 0) >= torch.accelerator.device_count()):
        raise ValueError(
            f"Device {device!r} is not available here; this machine has: cpu {accelerator or ''}".rstrip()
        )
    return chosen


def _quantization(quantize: str, target: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained` for `quantize`; the weights are quantized on the device that they stay on."""
    if quantize not in QUANTIZATIONS:
        raise ValueError(f"Unknown quantize {quantize!r}. Known: {', '.join(QUANTIZATIONS)}.")
    need("quant", "bitsandbytes")
    # Bitsandbytes logs the type of every product.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return {"quantization_config": BitsAndBytesConfig(**QUANTIZATIONS[quantize]), "device_map": target}


def _check_files(folder: Path) -> None:
    """Raises a `ValueError` naming a JSON file of a checkpoint that is damaged, or names weights elsewhere."""
    for pattern in ("*config.json", "tokenizer.json", SAFE_WEIGHTS_INDEX_NAME):
        for file in sorted(folder.glob(pattern)):
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file} does not parse: {error}.") from None
            if not isinstance(content, dict):
                raise ValueError(f"{file} holds a {type(content).__name__}, not a JSON object.")
            if file.name == SAFE_WEIGHTS_INDEX_NAME:
                _check_index(file, content.get("weight_map"))


def _check_index(file: Path, weight_map: Any) -> None:
    if not isinstance(weight_map, dict):
        raise ValueError(f"{file} has no weight_map from tensor names to files, got {weight_map!r}.")
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{file} has {tensor!r} in {shard!r}, which is not the name of a file beside it.")


def _resolved(source: str, revision: str | None, fields: dict[str, Any]) -> Resolved:
    """The config of `source` with `fields`, and the adapter if there is one, before any weights are read."""
    if not Path(source).is_dir():
        try:
            validate_repo_id(source)
        except HFValidationError:
            raise ValueError(f"There is no folder {source!r}, and it is no Hub id (OWNER/NAME).") from None
    _check_files(Path(source))
    adapter = Adapter.open(source, revision=revision)
    base, base_revision = (source, revision) if adapter is None else (adapter.base_name, adapter.base_revision)
    try:
        if Path(base).is_dir() and not (Path(base) / "config.json").is_file():
            raise FileNotFoundError(f"{base} has no config.json")
        model_type = ShirgLavidaConfig.get_config_dict(base, revision=base_revision)[0].get("model_type")
    except OSError as error:
        raise ValueError(
            f"There is no checkpoint at {base!r}{'' if adapter is None else f', the base of {source}'}: give a folder "
            "with a config.json or an adapter_config.json, or a Hub id that can be reached "
            f"({str(error).splitlines()[0]})"
        ) from None
    if model_type not in (ShirgLavidaConfig.model_type, _ORIGINAL):
        raise ValueError(
            f"{base} has model_type {model_type!r}, not {ShirgLavidaConfig.model_type!r}: it is no SHIRG-LaViDa "
            "checkpoint."
        )
    return resolve(ShirgLavidaConfig, source, None, {"revision": revision, **fields})
