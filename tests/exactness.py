"""How far a converted checkpoint is from the original LaViDa: every reference case with its largest error.

    python tests/exactness.py --out docs/exactness.md

The reference folder holds what the original code computed with a tiny random model (tests/fixtures/lavida): tensors
of one question about a photograph, of one training batch, tables of schedules and of image token counts. Errors of
tensors are relative to the largest absolute value of the reference; of ids and counts, the number of entries that
differ. A tensor of the reference that nothing was compared with is a failure too. A failure ends with status 1.

Shape suffixes: P prompt tokens, R response tokens, L tokens of a training row.
"""

import argparse
import ast
import json
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import PIL
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import rotate_half

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.conversion import convert_checkpoint
from modeling_shirg.conversion.original_config import read_backbone
from modeling_shirg.conversion.tensors import empty_model, expected_shapes, grafted_part, original_name
from modeling_shirg.denoising_shirg import transfer_counts
from modeling_shirg.objective_shirg import complementary_masks, first_masked, masked_ratio, token_losses
from modeling_shirg.prefix_cache_shirg import CACHE_ARGUMENT
from modeling_shirg.selection_shirg import pool_square
from tiny_model import chat, encode

REFERENCE = Path(__file__).parent / "fixtures" / "lavida"
# The reference's own tolerances, relative to the largest absolute value of a tensor.
VISION_TOLERANCE = 1e-4
LANGUAGE_TOLERANCE = 1e-3
RESPONSE_LENGTH = 32
ORIGINAL_IMAGE_ID = -200
ORIGINAL_IGNORED_ID = -100
LLADA = read_backbone("llava_llada")
# The original deletes SigLIP's last layer and pooling head, so the comparison of structures leaves them out.
WITHOUT_BASE = {"vision_config": {"num_hidden_layers": 26, "vision_use_head": False}, "vision_feature_layer": -1}


@dataclass(frozen=True)
class Case:
    """One comparison. `tolerance` 0 means that every entry is equal."""

    name: str
    entries: int
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance


class Golden(dict):
    """The tensors of one reference file, and which of them nothing has read yet."""

    def __init__(self, path: Path):
        super().__init__(load_file(path))
        self.file, self.unread = path.name, set(self)

    def __getitem__(self, name: str) -> torch.Tensor:
        self.unread.discard(name)
        return super().__getitem__(name)

    def unread_case(self) -> Case:
        """Number of tensors that nothing read: to be asked for when everything has been compared."""
        listed = f": {', '.join(sorted(self.unread))}" if self.unread else ""
        return Case(f"{self.file}: tensors that no case reads{listed}", len(self), len(self.unread), 0)


def compare(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> Case:
    """Largest error of a tensor, relative to the largest absolute value of `expected`, of the same shape."""
    if actual.shape != expected.shape:
        raise ValueError(f"{name}: shape {tuple(actual.shape)}, the reference has {tuple(expected.shape)}.")
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    return Case(name, expected.numel(), error.item(), tolerance)


def compare_exactly(name: str, actual: torch.Tensor, expected: torch.Tensor) -> Case:
    """Number of entries that differ; all of them if the shapes do."""
    differ = (actual != expected).sum().item() if actual.shape == expected.shape else expected.numel()
    return Case(name, expected.numel(), differ, 0)


def table_cases(config, reference: Path) -> Iterator[Case]:
    """Schedules and image token counts."""
    for row in json.loads((reference / "schedules.json").read_text()):
        shift = (row["schedule_kwargs"] or {}).get("shift", 3.0)
        counts = transfer_counts(row["n_mask"], row["steps"], row["schedule"], shift)
        name = f"schedule {row['schedule']}, shift {shift:.3g}, {row['n_mask']} masks in {row['steps']} steps"
        yield compare_exactly(name, torch.tensor(counts), torch.tensor(row["num_transfer_tokens"]))
    rows = json.loads((reference / "image_token_counts.json").read_text())
    counts = torch.tensor([config.count_image_tokens(*row["size_wh"]) for row in rows])
    yield compare_exactly("image token counts", counts, torch.tensor([row["n_image_tokens"] for row in rows]))


def structure_case(reference: Path) -> Case:
    """Names and shapes of the full-size model, built without storage, after renaming; counts those that differ."""
    shapes = json.loads((reference / "fullsize_state_dict.json").read_text())["shapes"]
    ours = {original_name(name, LLADA): list(shape) for name, shape in full_size("lavida", **WITHOUT_BASE).items()}
    differ = sum(ours.get(name) != shapes.get(name) for name in ours.keys() | shapes.keys())
    return Case("full-size names and shapes", len(shapes), differ, 0)


def full_size(preset: str, **fields) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the full-size model of a preset, built without storage."""
    return expected_shapes(empty_model(ShirgLavidaConfig.from_preset(preset, **fields)))


def prompt_cases(processor, reference: Path) -> Iterator[Case]:
    """Sizes of every prompt of the reference: views, image tokens, length, place of the image."""
    for name, facts in json.loads((reference / "meta.json").read_text()).items():
        if "prompt_len" not in facts:
            continue
        inputs = question(processor, reference / f"{name}.png", facts["prompt"])
        image_L = inputs["input_ids"][0] == processor.image_token_id
        sizes = [len(inputs["pixel_values"]), int(image_L.sum()), len(image_L), int(image_L.int().argmax())]
        expected = [facts[key] for key in ("n_views", "n_image_tokens", "prompt_len", "image_pos")]
        label = f"{name}: views, image tokens, prompt length, place of the image"
        yield compare_exactly(label, torch.tensor(sizes), torch.tensor(expected))


@torch.no_grad()
def question_cases(model, processor, reference: Path) -> Iterator[Case]:
    """One question about a photograph: from pixels to every generated token."""
    golden = Golden(reference / "landscape.safetensors")
    facts = json.loads((reference / "meta.json").read_text())["landscape"]
    inputs = question(processor, reference / "landscape.png", facts["prompt"])
    pixels = inputs["pixel_values"]
    yield compare("pixels", pixels[:, :, ::16, ::16], golden["pixel_values_strided"], VISION_TOLERANCE)
    yield compare("pixel means", pixels.mean((1, 2, 3)), golden["pixel_values_mean"], VISION_TOLERANCE)
    features = model.model.vision_tower(pixels)[0]
    yield compare("vision features", features, golden["vision_features"], VISION_TOLERANCE)
    pooled = pool_square(model.model.multi_modal_projector(features), model.config.view_grid)
    yield compare("pooled", pooled, golden["pooled"], VISION_TOLERANCE)
    embeds_1PC, images = model.model.prepare_inputs_embeds(
        inputs["input_ids"], pixel_values=pixels, mosaic_windows=inputs["mosaic_windows"]
    )
    yield compare("image tokens", images.image_tokens[0], golden["image_tokens"], VISION_TOLERANCE)
    ids = inputs["input_ids"].where(inputs["input_ids"] != model.config.image_token_id, ORIGINAL_IMAGE_ID)
    repeated = (ids == ORIGINAL_IMAGE_ID) & (ids.roll(1) == ORIGINAL_IMAGE_ID)
    yield compare_exactly("prompt ids, one for the image", ids[~repeated][None], golden["input_ids"])
    yield compare_exactly("prompt ids", ids, golden["expanded_input_ids"])
    yield compare("prompt embeddings", embeds_1PC, golden["inputs_embeds"], VISION_TOLERANCE)
    yield from forward_cases(model, embeds_1PC, golden)
    for name, case in facts["generate"].items():
        yield from generation_cases(model, inputs, name, case["kwargs"], golden)
    yield golden.unread_case()


@torch.no_grad()
def forward_cases(model, embeds_1PC: torch.Tensor, golden: Golden) -> Iterator[Case]:
    """One forward over prompt and masks, and the prefix cache."""
    masks_1R = torch.full((1, RESPONSE_LENGTH), model.config.mask_token_id)
    masks_1RC = model.get_input_embeddings()(masks_1R)
    output = model(inputs_embeds=torch.cat([embeds_1PC, masks_1RC], dim=1), output_hidden_states=True)
    yield compare("hidden states", output.hidden_states[-1], golden["full_hidden.3"], LANGUAGE_TOLERANCE)
    yield compare("logits", output.logits[:, -RESPONSE_LENGTH:], golden["full_logits_last32"], LANGUAGE_TOLERANCE)
    prefix = model(inputs_embeds=embeds_1PC, use_cache=True)
    yield compare("prefix logits", prefix.logits[:, -8:], golden["prefix_pass_logits_last8"], LANGUAGE_TOLERANCE)
    places_1P = torch.arange(embeds_1PC.shape[1])[None]
    cos, sin = model.model.language_model.rotary_emb(embeds_1PC, places_1P)
    for layer in (0, 2):
        held = prefix[CACHE_ARGUMENT].layers[layer]
        key = golden[f"prefix_kv.{layer}.key_prerope"]
        rotated = key * cos[:, None] + rotate_half(key) * sin[:, None]
        yield compare(f"prefix keys of layer {layer}", held.keys, rotated, LANGUAGE_TOLERANCE)
        values = golden[f"prefix_kv.{layer}.value"]
        yield compare(f"prefix values of layer {layer}", held.values, values, LANGUAGE_TOLERANCE)
    places_1R = embeds_1PC.shape[1] + torch.arange(RESPONSE_LENGTH)[None]
    first = model(inputs_embeds=masks_1RC, position_ids=places_1R, cache=prefix[CACHE_ARGUMENT])
    yield compare("first logits on the prefix", first.logits, golden["prefix_step0_logits"], LANGUAGE_TOLERANCE)


def generation_cases(model, inputs, name: str, arguments: dict, golden: Golden) -> Iterator[Case]:
    """Tokens and step history of one generation; `arguments` in the original's names."""
    options = dict(arguments)
    if "schedule_kwargs" in options:
        options.update(ast.literal_eval(options.pop("schedule_kwargs")))
    if options.get("remasking") == "entrophy":
        options["remasking"] = "entropy"
    logits = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: logits.append(output))
    output = model.generate(
        **inputs,
        **options,
        use_cache=name.endswith(".prefix"),
        return_dict_in_generate=True,
        output_history=True,
    )
    handle.remove()
    if f"gen.{name}.step0_logits" in golden:
        first = golden[f"gen.{name}.step0_logits"]
        yield compare(f"generation {name}: first logits", logits[0], first, LANGUAGE_TOLERANCE)
    tokens = output.sequences[0, -RESPONSE_LENGTH:]
    yield compare_exactly(f"generation {name}: tokens", tokens, golden[f"gen.{name}.tokens"])
    yield compare_exactly(f"generation {name}: every step", output.history[:, 0], golden[f"gen.{name}.history"])


def training_cases(model, processor, reference: Path) -> Iterator[Case]:
    """One training batch of two images: what is masked, the losses and the gradients.

    The original pads the spliced rows with zero embeddings, which are attended; here the batch is made that way by
    hand, because padding is masked in this package.
    """
    golden = Golden(reference / "train.safetensors")
    without_grad = json.loads((reference / "meta.json").read_text())["train_params_without_grad"]
    yield from padding_cases(processor, golden)
    ids_BL, embeds_BLC, labels_BL = training_batch(model, processor, reference, golden)
    yield compare_exactly("training: ids with every image token", ids_BL, golden["expanded_input_ids"])
    t_B, noise_BL = golden["t"], golden["rand_bl"]
    yield compare("training: ratios", masked_ratio(t_B)[:, None], golden["p_mask"], VISION_TOLERANCE)
    first_BL = first_masked(t_B, noise_BL)
    yield compare_exactly("training: positions drawn for the first half", first_BL, golden["masked_indices"])
    masked_2BL = complementary_masks(labels_BL, t_B, noise_BL, model.config.infill_token_id)
    yield compare_exactly("training: masked positions", masked_2BL, golden["final_masked_indices"])
    final = labels_BL.repeat(2, 1).where(masked_2BL, ORIGINAL_IGNORED_ID)
    yield compare_exactly("training: labels", final, golden["final_labels"])
    mask_C = model.get_input_embeddings().weight[model.config.mask_token_id]
    noised = torch.where(masked_2BL[..., None], mask_C, embeds_BLC.repeat(2, 1, 1))
    yield compare("training: noised embeddings", noised, golden["inputs_embeds_noised"], VISION_TOLERANCE)
    for name, prefix_lm in (("prefixlm", True), ("full", False)):
        model.config.prefix_lm_loss = prefix_lm
        output = model(inputs_embeds=embeds_BLC, labels=labels_BL, diffusion_time=t_B, mask_noise=noise_BL)
        logits = golden[f"{name}.logits_at_labels"]
        places = output.masked_positions.nonzero()
        yield compare_exactly(f"training {name}: predicted positions", places, golden[f"{name}.label_index"])
        yield compare(f"training {name}: logits", output.logits, logits, LANGUAGE_TOLERANCE)
        losses = token_losses(output.logits, labels_BL, output.masked_positions)
        expected = golden[f"{name}.per_token_loss"]
        yield compare(f"training {name}: loss of every token", losses, expected, LANGUAGE_TOLERANCE)
        yield compare(f"training {name}: loss", output.loss, golden[f"{name}.loss"], LANGUAGE_TOLERANCE)
    model.zero_grad()
    output.loss.backward()
    yield from gradient_cases(model, golden, without_grad)
    model.zero_grad()
    yield golden.unread_case()


def padding_cases(processor, golden: Golden) -> Iterator[Case]:
    """The batch that the tokenizer makes of the two examples; the reference is padded beyond the longer one."""
    tokenizer = processor.tokenizer
    padded = (golden["input_ids"] != tokenizer.pad_token_id).flip(-1).int().argmax(-1)
    rows = [ids[: len(ids) - int(count)].tolist() for ids, count in zip(golden["input_ids"], padded, strict=True)]
    options = {"padding": "max_length", "max_length": golden["input_ids"].shape[1], "padding_side": "right"}
    batch = tokenizer.pad({"input_ids": rows}, **options, return_tensors="pt")
    yield compare_exactly("training: padded ids", batch["input_ids"], golden["input_ids"])
    yield compare_exactly("training: attention mask", batch["attention_mask"].bool(), golden["attention_mask_in"])


def gradient_cases(model, golden: Golden, without_grad: list[str]) -> Iterator[Case]:
    """Gradients after `backward`, and which parameters of the original's have none."""
    kept_layers = model.config.vision_config.num_hidden_layers - 1
    none = set()
    for name, weight in model.named_parameters():
        if grafted_part(name, kept_layers) is not None:
            continue
        if weight.grad is None:
            none.add(original_name(name, LLADA))
        if f"grad.{original_name(name, LLADA)}" in golden:
            expected = golden[f"grad.{original_name(name, LLADA)}"]
            yield compare(f"training full: gradient of {name}", weight.grad, expected, LANGUAGE_TOLERANCE)
    differ = none.symmetric_difference(without_grad)
    yield Case("training full: parameters without a gradient", len(without_grad), len(differ), 0)


def training_batch(
    model, processor, reference: Path, golden: Golden
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids (B, L) as the original's, embeddings (B, L, C) with zero rows at the end of shorter examples, and labels
    (B, L), padding a target.
    """
    images = [Image.open(reference / name) for name in ("landscape.png", "doc.png")]
    views = processor.image_processor(images, return_tensors="pt")
    config = model.config
    rows, labels = [], []
    for ids, label, image in zip(golden["input_ids"], golden["labels_in"], images, strict=True):
        label = torch.where(ids == config.eos_token_id, config.eos_token_id, label)
        repeats = torch.where(ids == ORIGINAL_IMAGE_ID, config.count_image_tokens(*image.size), 1)
        rows.append(ids.where(ids != ORIGINAL_IMAGE_ID, config.image_token_id).repeat_interleave(repeats))
        labels.append(label.where(ids != ORIGINAL_IMAGE_ID, ORIGINAL_IGNORED_ID).repeat_interleave(repeats))
    ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=config.eos_token_id)
    labels_BL = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=ORIGINAL_IGNORED_ID)
    real_BL = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    embeds_BLC, _ = model.model.prepare_inputs_embeds(
        ids_BL, pixel_values=views["pixel_values"], mosaic_windows=views["mosaic_windows"]
    )
    expanded_BL = ids_BL.where(ids_BL != config.image_token_id, ORIGINAL_IMAGE_ID)
    expanded_BL = expanded_BL.where(real_BL.bool(), ORIGINAL_IGNORED_ID)
    return expanded_BL, embeds_BLC * real_BL[..., None], labels_BL


def question(processor, image: Path, prompt: str):
    """Model inputs of the question that the original's `prompt` asks about an image."""
    text = prompt.split("<image>\n")[1].split("<|eot_id|>")[0]
    return encode(processor, chat(text, Image.open(image)))


def table(cases: list[Case]) -> str:
    """The part of the page that is measured."""
    passed = f"{sum(case.passed for case in cases)} of {len(cases)} cases pass."
    system = f"Machine: {platform.machine()}, {platform.system()}, torch {torch.__version__}"
    versions = f"transformers {transformers.__version__}, Pillow {PIL.__version__}, one thread."
    lines = [f"{passed} {system}, {versions}", ""]
    lines += ["| case | entries | largest error | tolerance | |", "|---|---:|---:|---:|---|"]
    for case in cases:
        verdict = "passes" if case.passed else "**fails**"
        lines.append(f"| {case.name} | {case.entries:,} | {case.error:.1e} | {case.tolerance:g} | {verdict} |")
    return "\n".join(lines)


def reference_cases(folder: Path) -> list[Case]:
    """Convert the reference to `folder` and compare everything with one thread, as the original was run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (base,), golden = REFERENCE.glob("*siglip*"), REFERENCE / "golden"
    convert_checkpoint(REFERENCE / "checkpoint", folder, vision_base=base)
    model = ShirgLavidaForConditionalGeneration.from_pretrained(folder).eval()
    processor = ShirgLavidaProcessor.from_pretrained(folder)
    cases = [
        *question_cases(model, processor, golden),
        *prompt_cases(processor, golden),
        *training_cases(model, processor, golden),
        structure_case(golden),
        *table_cases(model.config, golden),
    ]
    torch.set_num_threads(threads)
    return cases


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="page whose table is replaced; by default the table is printed")
    page = parser.parse_args().out
    with tempfile.TemporaryDirectory() as workshop:
        cases = reference_cases(Path(workshop) / "converted")
    if page is None:
        print(table(cases))
    else:
        written, measured = page.read_text(encoding="utf-8"), table(cases)
        page.write_text(re.sub(r"^\d+ of \d+ cases.*?(?=\n\n## )", lambda _: measured, written, flags=re.M | re.S))
    sys.exit(0 if all(case.passed for case in cases) else 1)
