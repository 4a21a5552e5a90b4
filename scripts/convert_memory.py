"""Measure the memory of `shirg convert` on a synthetic checkpoint of LaViDa's shapes.

    python -m shirg_scripts.convert_memory --out docs/convert_memory.json     # 4 blocks of 32, 4.6 GB
    python -m shirg_scripts.convert_memory --blocks 32                        # full size, 16.9 GB, twice that on disk

It writes bfloat16 noise under the original's names into a new folder of --folder, converts it in a process of its own,
and removes both. The last line is one JSON object: bytes of the checkpoint, of its largest tensor and of a shard, and
the peak resident memory of the conversion and of a process that only imports what a conversion needs, in bytes; where
and when. --out writes it to a file too.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

from .peak_memory import Noise, facts, measured


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=4, help="language model blocks; the full size has 32")
    parser.add_argument("--dtype", default="bfloat16", help="of what is written (default: bfloat16)")
    parser.add_argument("--max_shard_size", default="2GB", help="of the source and of what is written")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="a new folder in here holds both checkpoints")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the last line here too")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Write, convert, measure, remove."""
    with tempfile.TemporaryDirectory(prefix="shirg-convert-", dir=args.folder) as folder:
        source, out = Path(folder) / "source", Path(folder) / "out"
        arguments = (str(source), args.blocks, args.max_shard_size)
        code = f"from {__package__}.convert_memory import write_synthetic\nresult = write_synthetic"
        sizes, _ = measured(code + repr(arguments))
        started = time.monotonic()
        command = ["convert", str(source), str(out), "--dtype", args.dtype, "--max_shard_size", args.max_shard_size]
        status, peak = measured(f"from {__package__}.cli import main\nresult = main({command!r})")
        if status:
            raise RuntimeError(f"shirg {' '.join(command)} ended with {status}.")
        seconds = time.monotonic() - started
        written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    _, baseline = measured("import modeling_shirg.conversion\nresult = None")
    figures = {
        "blocks": args.blocks,
        **sizes,
        "dtype": args.dtype,
        "written_bytes": written,
        "peak_bytes": peak,
        "baseline_bytes": baseline,
        "above_baseline_bytes": peak - baseline,
        "seconds": round(seconds, 1),
        **facts(),
    }
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def write_synthetic(path: str, blocks: int, max_shard_size: str) -> dict[str, int]:
    """A sharded bfloat16 checkpoint of LaViDa's shapes and names, with the bundled tokenizer; returns its sizes."""
    import torch

    from modeling_shirg.conversion.plan import original_name
    from modeling_shirg.conversion.safetensors_stream import write_shards

    folder = Path(path)
    folder.mkdir()
    config = _original_config(folder, blocks)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {original_name(name): Noise(shape) for name, shape in _shapes(blocks).items()}
    shards = write_shards(folder, tensors, dict.fromkeys(tensors, torch.bfloat16), max_shard_size)
    return {
        "checkpoint_bytes": sum(shards.values()),
        "tensors": len(tensors),
        "largest_tensor_bytes": max(math.prod(noise.shape) * torch.bfloat16.itemsize for noise in tensors.values()),
        "largest_shard_bytes": max(shards.values()),
    }


def _shapes(blocks: int) -> dict[str, tuple[int, ...]]:
    from configuration_shirg import ShirgLavidaConfig
    from modeling_shirg.conversion.plan import empty_model, expected_shapes

    config = ShirgLavidaConfig.from_preset(
        "lavida",
        text_config={"num_hidden_layers": blocks},
        vision_config={"num_hidden_layers": 26, "vision_use_head": False},
        vision_feature_layer=-1,
    )
    return expected_shapes(empty_model(config))


def _original_config(folder: Path, blocks: int) -> dict:
    """LaViDa's config at full width; the bundled tokenizer goes to `folder` with the one token it lacks."""
    from importlib.resources import as_file, files

    from transformers import PreTrainedTokenizerFast

    with as_file(files("shirg_hub_card") / "shirg-lavida-tiny" / "tokenizer.json") as path:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(path), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
        )
    tokenizer.add_tokens(["<|reserved_token_1|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return {
        "model_type": "llava_llada",
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "rope": True,
        "rope_theta": 500000.0,
        "d_model": 4096,
        "n_heads": 32,
        "n_layers": blocks,
        "mlp_hidden_size": 12288,
        "embedding_size": 126464,
        "max_sequence_length": 4096,
        "weight_tying": False,
        "eos_token_id": tokenizer.eos_token_id,
        "mm_projector_type": "mlp2x_gelu",
        "mm_patch_merge_type": "spatial_unpad",
        "image_aspect_ratio": "anyres",
        "image_grid_pinpoints": [[384, 768], [768, 384], [768, 768], [1152, 384], [384, 1152]],
    }


if __name__ == "__main__":
    main(parse_args())
