"""Broken, foreign and hostile checkpoints and adapters."""

import json
import pickle
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from adapter_runs import POSITIONS, PROJECTOR, save_run
from shirg_scripts.loading import load
from tiny_model import chat, encode

from .case import Case, checkpoint, model, picture

KIND, ADAPTER = "checkpoint", "adapter"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_EMBEDDING = "model.language_model.embed_tokens.weight"


def answer(folder: Path) -> list[list[int]]:
    """What the model that is loaded from there says."""
    loaded = load(str(folder), device="cpu")
    return loaded.model.generate(**encode(loaded.processor, chat("Which?", picture())), max_new_tokens=4).tolist()


def healthy() -> list[list[int]]:
    """The same of the model that was never saved."""
    from .case import processor

    return model().generate(**encode(processor(), chat("Which?", picture())), max_new_tokens=4).tolist()


def _copied(source: Path, change: Callable[[Path], None], act: Callable[[Path], Any]):
    def prepare(folder: Path) -> Callable[[], Any]:
        copy = folder / "copy"
        shutil.copytree(source, copy)
        change(copy)
        return lambda: act(copy)

    return prepare


def _bad(name: str, change: Callable[[Path], None], says: str, act: Callable[[Path], Any] = load) -> Case:
    prepare = lambda folder: _copied(checkpoint(), change, lambda copy: act(str(copy)))(folder)  # noqa: E731
    return Case(KIND, name, prepare, (ValueError, OSError, StrictDataclassError), says)


def _same(name: str, change: Callable[[Path], None]) -> Case:
    return Case(KIND, name, lambda folder: _copied(checkpoint(), change, answer)(folder), same_as=healthy)


def _rewritten(file: str, change: Callable[[dict], Any]) -> Callable[[Path], None]:
    """A change of a JSON file."""

    def rewrite(folder: Path) -> None:
        fields = json.loads((folder / file).read_text())
        change(fields)
        (folder / file).write_text(json.dumps(fields))

    return rewrite


def _content(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content)


def _without(*files: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / file).unlink() for file in files]


def _cut(file: str, keep: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(len(content) * keep)])

    return cut


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any], file: str = WEIGHTS) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file, {"format": "pt"})

    return rewrite


def _sharded(weight_map: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    """The weights as one shard, with an index that is changed."""

    def rewrite(folder: Path) -> None:
        shard = "model-00001-of-00001.safetensors"
        (folder / WEIGHTS).rename(folder / shard)
        places = dict.fromkeys(load_file(folder / shard), shard)
        weight_map(places)
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))

    return rewrite


class _Evil:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil()))


def _swapped(tensors: dict[str, torch.Tensor]) -> None:
    """Two matrices of different shapes in each other's place."""
    one, other = "model.multi_modal_projector.linear_1.weight", _EMBEDDING
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()


CHECKPOINTS = [
    _bad(
        "an empty folder",
        lambda folder: [file.unlink() for file in folder.iterdir()],
        "There is no checkpoint at .*give a folder",
    ),
    _bad("no config.json", _without("config.json"), "There is no checkpoint at .*copy.*config.json"),
    _bad("config.json is empty", _content("config.json", b""), "config.json does not parse"),
    _bad("config.json is text", _content("config.json", b"hello"), "config.json does not parse"),
    _bad("config.json is cut", _cut("config.json", 0.5), "config.json does not parse"),
    _bad("config.json is a list", _content("config.json", b"[]"), "config.json"),
    _bad("config.json is binary", _content("config.json", b"\xff\xfe\x00"), "config.json"),
    _bad(
        "the config of another model",
        _content("config.json", b'{"model_type": "gpt2"}'),
        "has model_type 'gpt2', not 'shirg_lavida'",
    ),
    _bad("the config of no model", _content("config.json", b"{}"), "has model_type None, not 'shirg_lavida'"),
    _bad(
        "an original LaViDa config", _content("config.json", b'{"model_type": "llava_llada"}'), "shirg convert SRC OUT"
    ),
    _bad(
        "a field of the wrong type",
        _rewritten("config.json", lambda f: f.update(selection_budget="all")),
        "selection_budget.*'all'",
    ),
    _bad(
        "an unknown field",
        _rewritten("config.json", lambda f: f.update(selection_buget=5)),
        "no field 'selection_buget'",
    ),
    _bad(
        "fields that contradict each other",
        _rewritten("config.json", lambda f: f.update(selection_budget=9999)),
        "selection_budget=9999 must be between 1 and the 256",
    ),
    _bad(
        "vision_config is a string",
        _rewritten("config.json", lambda f: f.update(vision_config="siglip")),
        "vision_config",
    ),
    _bad(
        "another width in the config",
        _rewritten("config.json", lambda f: f["text_config"].update(hidden_size=64)),
        "tensors of other shapes than the config asks for, such as .*Is the config that of these",
    ),
    _bad("no weights", _without(WEIGHTS), "no file named model.safetensors|no weights"),
    _bad("weights are empty", _content(WEIGHTS, b""), "weights of .*cannot be read.*Is the download complete"),
    _bad(
        "weights are a Git LFS pointer",
        _content(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "weights of .*cannot be read.*Is the download complete",
    ),
    *[
        _bad(
            f"weights cut at {keep:.0%}", _cut(WEIGHTS, keep), "weights of .*cannot be read.*Is the download complete"
        )
        for keep in (0.001, 0.5, 0.99)
    ],
    _bad(
        "a header that claims 2**60 bytes", _content(WEIGHTS, (2**60).to_bytes(8, "little") + b"{}"), "cannot be read"
    ),
    _bad("pickled weights", _pickled, "model.safetensors|safetensors"),
    _bad("two tensors are swapped", _tensors(_swapped), "linear_1|embed_tokens"),
    _bad("a tensor is missing", _tensors(lambda t: t.pop(_EMBEDDING)), "embed_tokens"),
    _bad("a reshaped tensor", _tensors(lambda t: t.update({_EMBEDDING: t[_EMBEDDING][:100]})), "embed_tokens"),
    _bad(
        "an index that points outside",
        _sharded(lambda m: m.update({_EMBEDDING: "../../other.safetensors"})),
        "other.safetensors|outside|beside",
    ),
    _bad(
        "an index that points to the system's files",
        _sharded(lambda m: m.update({_EMBEDDING: "/etc/passwd"})),
        "passwd|outside|beside",
    ),
    _bad(
        "an index with a shard that is not there",
        _sharded(lambda m: m.update({_EMBEDDING: "model-00002-of-00002.safetensors"})),
        "model-00002-of-00002",
    ),
    _bad(
        "an index that is no JSON",
        lambda folder: (_sharded(dict)(folder), _content(INDEX, b"{")(folder)),
        "index.json|JSON",
    ),
    _bad("no tokenizer", _without("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
    _bad("tokenizer.json is cut", _cut("tokenizer.json", 0.5), "tokenizer"),
    _bad(
        "a tokenizer without <image>",
        _rewritten(
            "tokenizer.json",
            lambda f: f.update(added_tokens=[token for token in f["added_tokens"] if token["content"] != "<image>"]),
        ),
        "<image>",
    ),
    _bad("processor_config.json is cut", _cut("processor_config.json", 0.5), "processor_config.json"),
    _bad("no processor_config.json", _without("processor_config.json"), "processor"),
    _bad(
        "generation_config.json has an unknown field",
        _rewritten("generation_config.json", lambda f: f.update(num_beams=4)),
        "num_beams",
    ),
    _bad(
        "generation_config.json has a wrong value",
        _rewritten("generation_config.json", lambda f: f.update(max_new_tokens=-1)),
        "max_new_tokens=-1 must be",
    ),
    _bad("generation_config.json is cut", _cut("generation_config.json", 0.5), "generation_config.json"),
    Case(
        KIND,
        "a folder that is not there",
        lambda folder: lambda: load(str(folder / "missing")),
        ValueError,
        "There is no folder .*missing",
    ),
    Case(
        KIND,
        "a file instead of a folder",
        lambda folder: lambda: load(str(checkpoint() / "config.json")),
        ValueError,
        "There is no folder .*config.json",
    ),
    Case(
        KIND,
        "a Hub id that cannot be reached",
        lambda folder: lambda: load("nobody/nothing"),
        ValueError,
        "no checkpoint at 'nobody/nothing'",
    ),
    Case(
        KIND,
        "an unknown dtype",
        lambda folder: lambda: load(str(checkpoint()), dtype="int4"),
        ValueError,
        "Unknown dtype 'int4'. Known: auto, float32",
    ),
    Case(
        KIND,
        "an unknown device",
        lambda folder: lambda: load(str(checkpoint()), device="abacus"),
        ValueError,
        "Unknown device 'abacus'",
    ),
    Case(
        KIND,
        "a device that is not here",
        lambda folder: lambda: load(str(checkpoint()), device="xpu:7"),
        ValueError,
        "'xpu:7' is not available here",
    ),
    _same("as it was saved", lambda folder: None),
    _same("an extra tensor", _tensors(lambda t: t.update({"model.extra.weight": torch.ones(3)}))),
    _same("in one shard with an index", _sharded(dict)),
    _same("a pickle that lies beside", lambda folder: (folder / "optimizer.bin").write_bytes(pickle.dumps(_Evil()))),
    _same("no generation config", _without("generation_config.json")),
]


# Adapters


@cache
def adapter() -> Path:
    """The folder of a run on the tiny checkpoint."""
    return save_run(checkpoint().parent / "adapter", checkpoint(), PROJECTOR, [POSITIONS]).folder


_ADAPTER_WEIGHTS, _ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def _bad_adapter(name: str, change: Callable[[Path], None], says: str, act: Callable[[str], Any] = load) -> Case:
    prepare = lambda folder: _copied(adapter(), change, lambda copy: act(str(copy)))(folder)  # noqa: E731
    return Case(ADAPTER, name, prepare, (ValueError, OSError, StrictDataclassError), says)


def _run(**fields: Any) -> Callable[[Path], None]:
    return _rewritten("run.json", lambda run: run.update(fields))


def _base(**fields: Any) -> Callable[[Path], None]:
    return _rewritten("run.json", lambda run: run["base_model"].update(fields))


ADAPTERS = [
    _bad_adapter("of other base weights", _base(fingerprint="0" * 64), "trained on other base weights.*000000000000"),
    _bad_adapter(
        "whose base is not here",
        _rewritten(_ADAPTER_CONFIG, lambda f: f.update(base_model_name_or_path="/no/base")),
        "no checkpoint at '/no/base', the base of",
    ),
    _bad_adapter(
        "that names no base",
        _rewritten(_ADAPTER_CONFIG, lambda f: f.pop("base_model_name_or_path")),
        "names no base model",
    ),
    _bad_adapter(
        "of another geometry",
        _rewritten("run.json", lambda run: run["config"].update(num_image_tokens=980)),
        "num_image_tokens=980, here 245",
    ),
    _bad_adapter("of an unknown system", _run(prune_method="shrig"), "Unknown prune_method 'shrig'"),
    _bad_adapter(
        "without its embedding",
        _tensors(lambda t: [t.pop(n) for n in list(t) if POSITIONS in n], _ADAPTER_WEIGHTS),
        "lacks its foveal_position_embedding",
    ),
    _bad_adapter(
        "with a reshaped embedding",
        _tensors(lambda t: t.update({n: t[n][:9] for n in t if POSITIONS in n}), _ADAPTER_WEIGHTS),
        "3x3 positions",
    ),
    _bad_adapter(
        "with a tensor that has no place",
        _tensors(
            lambda t: t.update({"base_model.model.model.nothing.lora_A.weight": torch.ones(4, 4)}), _ADAPTER_WEIGHTS
        ),
        "nothing",
    ),
    _bad_adapter(
        "with half of a pair",
        _tensors(lambda t: t.pop(next(n for n in t if "lora_B" in n)), _ADAPTER_WEIGHTS),
        "lora_B",
    ),
    _bad_adapter(
        "without weights", _without(_ADAPTER_WEIGHTS), "no adapter_model.safetensors: only safetensors are read"
    ),
    *[
        _bad_adapter(
            f"cut at {keep:.0%}", _cut(_ADAPTER_WEIGHTS, keep), "adapter_model.safetensors|Is the download complete"
        )
        for keep in (0, 0.05, 0.9)
    ],
    _bad_adapter(
        "pickled",
        lambda folder: (
            (folder / _ADAPTER_WEIGHTS).unlink(),
            (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Evil())),
        ),
        "only safetensors are read",
    ),
    _bad_adapter("whose config is no JSON", _content(_ADAPTER_CONFIG, b"{"), "does not parse"),
    _bad_adapter("whose config is a list", _content(_ADAPTER_CONFIG, b"[]"), "holds a list, not a JSON object"),
    _bad_adapter("whose report is no JSON", _content("run.json", b"{"), "does not parse"),
    _bad_adapter("whose report is of something else", _content("run.json", b"{}"), "no proper base_model"),
]

CASES = [*CHECKPOINTS, *ADAPTERS]
