"""Measure the memory of loading a checkpoint and answering one question.

    python -m shirg_scripts.answer_memory --blocks 32 --max_new_tokens 4 --steps 4 --out docs/answer_memory.json
    python -m shirg_scripts.answer_memory --model my-lavida --device cuda --prune_method lavida-full --prefix_offload
    python -m shirg_scripts.answer_memory --model my-lavida --quantize int4

--blocks writes bfloat16 noise of LaViDa's shapes, with so many of the language model's 32 blocks, into a new folder of
--folder and removes it: 17 GB for all of them. A process of its own loads and answers. The last line is one JSON
object, in bytes: the weights; the peak, of the process's resident memory on a CPU and of what torch allocated on CUDA;
their ratio; that ratio without what a process takes that only imports the same; the prompt's keys and values. On a CPU
weights are mapped from their files: pages that an answer does not read, such as embeddings of other words, are not
resident, nor those that the kernel took back when memory was short. --out writes the object to a file too.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from .peak_memory import Noise, facts, measured

_QUESTION = "What is in cell 5?"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from .arguments import add_answer_arguments, add_model_arguments, add_quantize_argument, add_system_arguments

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    add_quantize_argument(parser)
    add_system_arguments(parser)
    add_answer_arguments(parser)
    parser.add_argument("--blocks", type=int, help="noise instead of --model, with so many blocks; all are 32")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="a new folder in here holds the noise")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the last line here too")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write noise if asked to, load and answer in a process of its own, report."""
    from .arguments import answer_arguments

    if args.blocks is not None and args.model is not None:
        raise ValueError(f"--blocks {args.blocks} and --model {args.model}: both are weights, give one of them.")
    generation = {name: value for name, value in answer_arguments(args).items() if value is not None}
    names = ("model", "revision", "device", "dtype", "quantize", "prune_method", "text_relevance")
    loading = {name: getattr(args, name) for name in names}
    with ExitStack() as stack:
        if args.blocks is not None:
            loading["model"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="shirg-noise-", dir=args.folder))
            _call("write_noise", loading["model"], args.blocks)
        found, resident = _call("load_and_answer", loading, generation)
    _, imports = measured(f"import {__package__}.answering\nresult = None")
    on_device = found.pop("device_peak_bytes")
    peak, beside = (resident, imports) if on_device is None else (on_device, 0)
    figures = {
        **{name: value for name, value in loading.items() if value is not None},
        "model": args.model or (f"noise, {args.blocks} blocks" if args.blocks is not None else "bundled"),
        **generation,
        **found,
        "peak_bytes": peak,
        "ratio": round(peak / found["weight_bytes"], 4),
        "host_peak_bytes": resident,
        "imports_bytes": imports,
        "ratio_without_imports": round((peak - beside) / found["weight_bytes"], 4),
        **facts(),
    }
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def write_noise(folder: str, blocks: int) -> None:
    """A checkpoint in bfloat16 of the full geometry and width, with the bundled tokenizer."""
    import torch

    from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
    from modeling_shirg.conversion.plan import empty_model, expected_shapes
    from modeling_shirg.conversion.safetensors_stream import write_shards

    from .loading import checkpoint_folder

    toy, processor = (
        kind.from_pretrained(checkpoint_folder(None)) for kind in (ShirgLavidaConfig, ShirgLavidaProcessor)
    )
    ids = {name: value for name, value in toy.to_dict().items() if name.endswith("_token_id")}
    config = ShirgLavidaConfig.from_preset("shirg", text_config={"num_hidden_layers": blocks}, **ids)
    tensors = {name: Noise(shape) for name, shape in expected_shapes(empty_model(config)).items()}
    write_shards(Path(folder), tensors, dict.fromkeys(tensors, torch.bfloat16), "5GB")
    config.save_pretrained(folder)
    ShirgLavidaProcessor.from_config(config, processor.tokenizer, processor.chat_template).save_pretrained(folder)


def load_and_answer(loading: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """Ask one question about the first example, by the arguments of `load` and of `generate`; bytes and seconds."""
    from importlib.resources import files

    import torch

    from modeling_shirg.evaluation.timing import StageClock

    from .answering import answer_question, read_image
    from .loading import load, resolve_device

    device = resolve_device(loading["device"])
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"Memory is measured on cpu and cuda, not on {device.type}: say --device cpu.")
    clock = StageClock()
    with clock.stage("load"):
        loaded = load(**loading)
    image = read_image(loaded, str(files("shirg_hub_card") / "examples" / "grid.png"))
    answer = answer_question(loaded, image, _QUESTION, clock, **generation)
    weights = (*loaded.model.parameters(), *loaded.model.buffers())
    return {
        "device": str(device),
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "prune_method": loaded.model.config.prune_method,
        "image_tokens": answer.num_image_tokens,
        "forwards": answer.outputs.forwards,
        "weight_bytes": sum({each.data_ptr(): each.nbytes for each in weights}.values()),
        "prefix_bytes": answer.outputs.prefix_bytes and sum(answer.outputs.prefix_bytes),
        "device_peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "seconds": round(sum(clock.seconds.values()), 1),
    }


def _call(function: str, *arguments: Any) -> tuple:
    """What a function of this file returns in a process of its own, and that process's peak."""
    return measured(f"from {__package__}.answer_memory import {function}\nresult = {function}(*{arguments!r})")


if __name__ == "__main__":
    main(parse_args())
