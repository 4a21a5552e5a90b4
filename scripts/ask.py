"""Answer a question about an image.

    shirg ask photo.png "What is in the picture?"
    shirg ask page.png "What is the total?" --model me/my-lavida --prune_method shirg --overlay kept.png
    cat page.png | shirg ask - "What is the total?" --json

Without --model the checkpoint that comes with this package answers: a toy-scale model that reads small rendered scenes
only.
"""

import argparse
import json
import sys
from pathlib import Path


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from configuration_shirg.presets_shirg import PRESETS

    parser = argparse.ArgumentParser(
        prog="shirg ask", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", help="a file, a URL, or - for standard input")
    parser.add_argument("question", help="the question, in plain words")
    parser.add_argument("--model", help="folder or Hub id; by default the bundled toy checkpoint")
    parser.add_argument(
        "--prune_method", choices=sorted(PRESETS), help="system to use; by default the checkpoint's own"
    )
    parser.add_argument(
        "--text_relevance",
        choices=("lm", "siglip", "none"),
        help="how patches are compared with the question; by default as the checkpoint says",
    )
    parser.add_argument(
        "--fovea_box", type=float, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="look here"
    )
    parser.add_argument("--max_new_tokens", type=int, help="length of the answer in tokens")
    parser.add_argument("--steps", type=int, help="denoising steps in all")
    parser.add_argument(
        "--prefix_kv", type=float, metavar="RATIO", help="share of the prompt's keys and values to keep"
    )
    parser.add_argument("--prefix_dtype", choices=("bfloat16", "float16", "int8"), help="type to store them in")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, ...")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--overlay", type=Path, metavar="OUT.png", help="write the picture of what was looked at")
    parser.add_argument("--stream", action="store_true", help="show the answer while it denoises")
    parser.add_argument("--json", action="store_true", help="last line: one JSON object")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Load, ask, answer."""
    import torch
    from transformers.utils import logging

    from .loading import load
    from .stage_clock import StageClock

    logging.disable_progress_bar()
    if args.overlay:
        _check_writable(args.overlay)
    clock = StageClock()
    with clock.stage("load"):
        loaded = load(args.model, args.prune_method, args.device, args.dtype, args.text_relevance)
    print(f"Model: {loaded.name}, system: {loaded.model.config.prune_method}", file=sys.stderr)
    image_processor = loaded.processor.image_processor
    with clock.stage("preprocess"):
        source = sys.stdin.buffer.read() if args.image == "-" else args.image
        image = image_processor.process_image(image_processor.fetch_images(source))
        inputs = _inputs(loaded.processor, image, args.question, args.fovea_box).to(loaded.model.device)
    with torch.no_grad(), clock.watch(loaded.model):
        outputs, images = _answer(loaded, inputs, args, clock)
    answer = loaded.processor.post_process_image_text_to_text(outputs.sequences)[0]
    if args.overlay:
        _save_overlay(args.overlay, image, inputs, images, loaded.model.config)
    if not args.json:
        if not args.stream:  # the streamer has printed it already
            print(answer)
        return
    seconds = {name: round(value, 4) for name, value in clock.seconds.items()}
    print(
        json.dumps(
            {
                "answer": answer,
                "image_tokens": len(images.image_tokens[0]),
                "kept": _kept_per_view(images, len(inputs["pixel_values"]), loaded.model.config),
                "forwards": outputs.forwards,
                "tokens_per_forward": round(outputs.tokens_per_forward.item(), 4),
                "prefix_bytes": outputs.prefix_bytes
                and {"total": sum(outputs.prefix_bytes), "per_layer": outputs.prefix_bytes},
                "seconds": seconds,
            }
        )
    )


def _check_writable(path: Path) -> None:
    """Before any work: the picture can be written there."""
    from PIL import Image

    known = Image.registered_extensions()
    if path.suffix.lower() not in known:
        raise ValueError(f"--overlay {path}: write it to a picture file such as {path.stem or 'kept'}.png.")
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ValueError(f"--overlay {path}: no file can be written there; is {path.resolve().parent} a folder?")


def _inputs(processor, image, question: str, fovea_box: list[float] | None):
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"fovea_boxes": [fovea_box]} if fovea_box else {},
    )


def _answer(loaded, inputs, args: argparse.Namespace, clock):
    """The generated answer and the image tokens it was read from."""
    from transformers import TextDiffusionStreamer

    names = ("max_new_tokens", "steps", "prefix_kv", "prefix_dtype")
    options = {name: getattr(args, name) for name in names}
    with clock.stage("image"):
        embeds, images = loaded.model.model.prepare_inputs_embeds(
            inputs["input_ids"],
            inputs["pixel_values"],
            inputs.get("fovea_pixel_values"),
            inputs["question_mask"],
            inputs.get("mosaic_windows"),
            inputs.get("relevance_input_ids"),
        )
    clock.seconds["select"] = clock.seconds.pop("image") - clock.seconds["encode"] - clock.seconds["project"]
    tokenizer = loaded.processor.tokenizer
    streamer = TextDiffusionStreamer(tokenizer, skip_special_tokens=True) if args.stream else None
    with clock.stage("generate"):
        outputs = loaded.model.generate(
            inputs_embeds=embeds,
            attention_mask=inputs["attention_mask"],
            streamer=streamer,
            return_dict_in_generate=True,
            **{name: value for name, value in options.items() if value is not None},
        )
    clock.seconds["rest"] = clock.seconds.pop("generate") - clock.seconds["prefix"] - clock.seconds["denoise"]
    return outputs, images


def _kept_per_view(images, num_base_views: int, config) -> list[list[int]]:
    """For each view, base views first, the raster indices of the patches that reach the language model."""
    kept = [list(range(config.base_grid**2))] * num_base_views
    if config.fovea_grid is not None:
        all_patches = list(range(config.fovea_grid**2))
        kept.append(all_patches if images.kept_indices is None else images.kept_indices[0].tolist())
    return kept


def _save_overlay(path: Path, image, inputs, images, config) -> None:
    from modeling_shirg.evaluation.overlay import draw_overlay

    fovea_boxes = kept = None
    if config.fovea_grid is not None:
        fovea_boxes = inputs["patch_boxes"][0, -(config.fovea_grid**2) :].cpu().numpy()
    if images.kept_indices is not None:
        kept = images.kept_indices[0].tolist()
    draw_overlay(image, inputs["view_boxes"][0].cpu().numpy(), fovea_boxes, kept).save(path)


if __name__ == "__main__":
    main(parse_args())
