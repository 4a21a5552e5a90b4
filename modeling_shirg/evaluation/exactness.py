"""How far a converted checkpoint is from the original LaViDa: every reference case with its largest error.

The reference folder holds what the original code computed with a tiny random model (tests/fixtures/lavida): tensors
of one question about a photograph, of one training batch, tables of schedules and of image token counts. Errors of
tensors are relative to the largest absolute value of the reference; of ids and counts, the number of entries that
differ.

Shape suffixes: P prompt tokens, R response tokens, L tokens of a training row.
"""

import ast
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import rotate_half

from configuration_shirg import ShirgLavidaConfig, ShirgLavidaProcessor
from modeling_shirg import ShirgLavidaForConditionalGeneration
from modeling_shirg.conversion import convert_checkpoint
from modeling_shirg.conversion.plan import empty_model, expected_shapes, original_name
from modeling_shirg.denoising_shirg import transfer_counts
from modeling_shirg.objective_shirg import complementary_masks, masked_ratio
from modeling_shirg.selection_shirg import pool_square

# The reference's own tolerances, relative to the largest absolute value of a tensor.
VISION_TOLERANCE = 1e-4
LANGUAGE_TOLERANCE = 1e-3
RESPONSE_LENGTH = 32
ORIGINAL_IMAGE_ID = -200
QUESTION = "Describe the image in detail."


@dataclass(frozen=True)
class Case:
    """One comparison. `tolerance` 0 means that every entry is equal."""

    name: str
    entries: int
    error: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


def compare(name: str, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> Case:
    """Largest error of a tensor, relative to the largest absolute value of `expected`.

    Raises:
        ValueError: the shapes differ.
    """
    if actual.shape != expected.shape:
        raise ValueError(f"{name}: shape {tuple(actual.shape)}, the reference has {tuple(expected.shape)}.")
    error = (actual.double() - expected.double()).abs().max() / expected.double().abs().max()
    return Case(name, expected.numel(), error.item(), tolerance)


def compare_exactly(name: str, actual: torch.Tensor, expected: torch.Tensor) -> Case:
    """Number of entries that differ; all of them if the shapes do."""
    differ = (actual != expected).sum().item() if actual.shape == expected.shape else expected.numel()
    return Case(name, expected.numel(), differ, 0)


def convert_reference(reference: Path, out: Path) -> tuple[ShirgLavidaForConditionalGeneration, ShirgLavidaProcessor]:
    """The reference checkpoint, converted with its vision base to `out` and loaded."""
    (base,) = reference.glob("*siglip*")
    convert_checkpoint(reference / "checkpoint", out, vision_base=base)
    model = ShirgLavidaForConditionalGeneration.from_pretrained(out).eval()
    return model, ShirgLavidaProcessor.from_pretrained(out)


def all_cases(model, processor, reference: Path) -> Iterator[Case]:
    """Every case of the reference folder, computed with a converted checkpoint in float32 on the CPU."""
    yield from question_cases(model, processor, reference)
    yield from training_cases(model, processor, reference)
    yield structure_case(reference)
    yield from table_cases(model.config, reference)


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
    """Names and shapes of the full-size model, built without storage, after renaming; counts those that differ.

    The original deletes SigLIP's last layer and pooling head, so they are left out here too.
    """
    shapes = json.loads((reference / "fullsize_state_dict.json").read_text())["shapes"]
    config = ShirgLavidaConfig.from_preset(
        "lavida", vision_config={"num_hidden_layers": 26, "vision_use_head": False}, vision_feature_layer=-1
    )
    ours = {original_name(name): list(shape) for name, shape in expected_shapes(empty_model(config)).items()}
    differ = sum(ours.get(name) != shapes.get(name) for name in ours.keys() | shapes.keys())
    return Case("full-size names and shapes", len(shapes), differ, 0)


@torch.no_grad()
def question_cases(model, processor, reference: Path) -> Iterator[Case]:
    """One question about a photograph: from pixels to every generated token."""
    golden = load_file(reference / "landscape.safetensors")
    cases = json.loads((reference / "meta.json").read_text())["landscape"]["generate"]
    inputs = _question(processor, reference / "landscape.png")
    pixels = inputs["pixel_values"]
    yield compare("pixels", pixels[:, :, ::16, ::16], golden["pixel_values_strided"], VISION_TOLERANCE)
    yield compare("pixel means", pixels.mean((1, 2, 3)), golden["pixel_values_mean"], VISION_TOLERANCE)
    features = model.model.vision_tower(pixels)[0]
    yield compare("vision features", features, golden["vision_features"], VISION_TOLERANCE)
    pooled = pool_square(model.model.multi_modal_projector(features), model.config.view_grid)
    yield compare("pooled", pooled, golden["pooled"], VISION_TOLERANCE)
    embeds_1PC, images = model.model.prepare_inputs_embeds(
        inputs["input_ids"], pixels, mosaic_windows=inputs["mosaic_windows"]
    )
    yield compare("image tokens", images.image_tokens[0], golden["image_tokens"], VISION_TOLERANCE)
    ids = inputs["input_ids"].where(inputs["input_ids"] != model.config.image_token_id, ORIGINAL_IMAGE_ID)
    yield compare_exactly("prompt ids", ids, golden["expanded_input_ids"])
    yield compare("prompt embeddings", embeds_1PC, golden["inputs_embeds"], VISION_TOLERANCE)
    yield from _forward_cases(model, embeds_1PC, golden)
    for name, case in cases.items():
        yield from _generation_cases(model, inputs, name, case["kwargs"], golden)


@torch.no_grad()
def _forward_cases(model, embeds_1PC: torch.Tensor, golden: dict[str, torch.Tensor]) -> Iterator[Case]:
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
        held = prefix.past_key_values.layers[layer]
        key = golden[f"prefix_kv.{layer}.key_prerope"]
        rotated = key * cos[:, None] + rotate_half(key) * sin[:, None]
        yield compare(f"prefix keys of layer {layer}", held.keys, rotated, LANGUAGE_TOLERANCE)
        values = golden[f"prefix_kv.{layer}.value"]
        yield compare(f"prefix values of layer {layer}", held.values, values, LANGUAGE_TOLERANCE)
    places_1R = embeds_1PC.shape[1] + torch.arange(RESPONSE_LENGTH)[None]
    first = model(inputs_embeds=masks_1RC, position_ids=places_1R, past_key_values=prefix.past_key_values)
    yield compare("first logits on the prefix", first.logits, golden["prefix_step0_logits"], LANGUAGE_TOLERANCE)


def _generation_cases(model, inputs, name: str, arguments: dict, golden: dict[str, torch.Tensor]) -> Iterator[Case]:
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
    golden = load_file(reference / "train.safetensors")
    embeds_BLC, labels_BL = _training_batch(model, processor, reference, golden)
    t_B, noise_BL = golden["t"], golden["rand_bl"]
    yield compare("training: ratios", masked_ratio(t_B)[:, None], golden["p_mask"], VISION_TOLERANCE)
    masked_2BL = complementary_masks(labels_BL, t_B, noise_BL, model.config.infill_token_id)
    yield compare_exactly("training: masked positions", masked_2BL, golden["final_masked_indices"])
    final = labels_BL.repeat(2, 1).where(masked_2BL, -100)
    yield compare_exactly("training: labels", final, golden["final_labels"])
    mask_C = model.get_input_embeddings().weight[model.config.mask_token_id]
    noised = torch.where(masked_2BL[..., None], mask_C, embeds_BLC.repeat(2, 1, 1))
    yield compare("training: noised embeddings", noised, golden["inputs_embeds_noised"], VISION_TOLERANCE)
    for name, prefix_lm in (("prefixlm", True), ("full", False)):
        model.config.prefix_lm_loss = prefix_lm
        output = model(inputs_embeds=embeds_BLC, labels=labels_BL, diffusion_time=t_B, mask_noise=noise_BL)
        logits = golden[f"{name}.logits_at_labels"]
        yield compare(f"training {name}: logits", output.logits, logits, LANGUAGE_TOLERANCE)
        yield compare(f"training {name}: loss", output.loss, golden[f"{name}.loss"], LANGUAGE_TOLERANCE)
    model.zero_grad()
    output.loss.backward()
    for name, weight in model.named_parameters():
        expected = golden.get(f"grad.{original_name(name)}")
        if expected is not None:
            yield compare(f"training full: gradient of {name}", weight.grad, expected, LANGUAGE_TOLERANCE)
    model.zero_grad()


def _training_batch(
    model, processor, reference: Path, golden: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (B, L, C) with zero rows at the end of shorter examples, and labels (B, L), padding a target."""
    images = [Image.open(reference / name) for name in ("landscape.png", "doc.png")]
    views = processor.image_processor(images, return_tensors="pt")
    config = model.config
    rows, labels = [], []
    for ids, label, image in zip(golden["input_ids"], golden["labels_in"], images, strict=True):
        label = torch.where(ids == config.eos_token_id, config.eos_token_id, label)
        repeats = torch.where(ids == ORIGINAL_IMAGE_ID, config.count_image_tokens(*image.size), 1)
        rows.append(ids.where(ids != ORIGINAL_IMAGE_ID, config.image_token_id).repeat_interleave(repeats))
        labels.append(label.where(ids != ORIGINAL_IMAGE_ID, -100).repeat_interleave(repeats))
    ids_BL = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=config.eos_token_id)
    labels_BL = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    real_BL = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    embeds_BLC, _ = model.model.prepare_inputs_embeds(
        ids_BL, views["pixel_values"], mosaic_windows=views["mosaic_windows"]
    )
    return embeds_BLC * real_BL[..., None], labels_BL


def _question(processor, image: Path):
    content = [{"type": "image", "image": Image.open(image)}, {"type": "text", "text": QUESTION}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
