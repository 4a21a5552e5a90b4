"""Bad and odd arguments of `generate`."""

import math
import re
from typing import Any

import torch

from modeling_shirg.generation_config_shirg import ShirgGenerationConfig
from tiny_model import chat, encode

from .case import Case, model, picture, processor, refused

KIND = "generation"


def answer(**changes: Any) -> list[list[int]]:
    """What the tiny model says to one question, with some of its inputs or arguments changed."""
    inputs = {**encode(processor(), chat("Which?", picture())), "max_new_tokens": 4, **changes}
    return model().generate(**inputs)[:, -4:].tolist()


def _bad(says: str, **changes: Any) -> Case:
    held = {name: tuple(value.shape) if isinstance(value, torch.Tensor) else value for name, value in changes.items()}
    name = ", ".join(f"{name}={re.sub(' at 0x[0-9a-f]+', '', repr(value)):.60}" for name, value in held.items())
    return refused(KIND, f"{name} ({says:.40})", lambda: answer(**changes), (ValueError, TypeError), says)


def _same(name: str, healthy: dict[str, Any], **changes: Any) -> Case:
    return Case(KIND, name, lambda folder: lambda: answer(**changes), same_as=lambda: answer(**healthy))


ARGUMENTS = [
    *[
        _bad(rf"max_new_tokens={value!r} must be an int > 0", max_new_tokens=value)
        for value in (0, -1, 2.5, "8", True, None, math.nan)
    ],
    *[_bad(f"block_length={value!r} must be an int > 0", block_length=value) for value in (0, -2, "8", 1.5)],
    _bad("max_new_tokens=4 must be a multiple of block_length=3", block_length=3),
    *[_bad(f"steps={value!r} must be an int > 0", steps=value) for value in (0, -1, 1.5, "4")],
    _bad("steps=3 must be a multiple of the number of blocks, 2", steps=3, block_length=2),
    _bad("steps=2 and step_ratio=0.5 both set the number of steps: give one", steps=2, step_ratio=0.5),
    *[
        _bad(rf"step_ratio={value!r} must be a number in \(0, 1\]", step_ratio=value)
        for value in (0, 1.5, "a", math.nan)
    ],
    _bad("step_ratio=1e-09 leaves no step .* at least 1/4", step_ratio=1e-9),
    *[_bad("schedule=.* must be one of None, 'linear'", schedule=value) for value in ("fast", 3, [])],
    *[_bad(f"shift={value!r} must be a number > 0", shift=value) for value in (0, -1, "a", math.nan, math.inf)],
    *[_bad("remasking=.* must be one of 'low_confidence'", remasking=value) for value in ("best", None, {})],
    *[_bad(f"do_sample={value!r} must be True or False", do_sample=value) for value in ("yes", 1, None)],
    *[
        _bad(f"temperature={value!r} must be a number > 0", temperature=value)
        for value in (-1, "hot", math.nan, math.inf)
    ],
    _bad("temperature=0.5 needs do_sample=True, got do_sample=False", temperature=0.5),
    _bad("temperature=0 draws nothing, .*set do_sample=False", temperature=0, do_sample=True),
    *[_bad(f"use_cache={value!r} must be True or False", use_cache=value) for value in (None, "no", 0)],
    *[
        _bad(rf"prefix_kv={value!r} must be a number in \(0, 1\]", prefix_kv=value)
        for value in (0, -1, 2, "a", math.nan)
    ],
    _bad("prefix_kv=0.5 needs use_cache=True, got False", prefix_kv=0.5, use_cache=False),
    *[_bad("prefix_dtype=.* must be None or one of 'bfloat16'", prefix_dtype=value) for value in ("int4", 8, [])],
    *[_bad(f"prefix_offload={value!r} must be True or False", prefix_offload=value) for value in (None, "cpu", 1)],
    _bad("prefix_offload=True moves .* the model is on 'cpu'", prefix_offload=True),
    *[_bad("suppress_tokens=.* must be a list of token ids", suppress_tokens=value) for value in (3, ["a"], [-1])],
    _bad("suppress_tokens holds id 1000000, the model has 272 logits", suppress_tokens=[10**6]),
    _bad("suppress_tokens names all 272 ids: nothing could be generated", suppress_tokens=list(range(272))),
    _bad("return_dict_in_generate='yes' must be True or False", return_dict_in_generate="yes"),
    _bad("output_history=True needs return_dict_in_generate=True", output_history=True),
    _bad("output_selection=True needs return_dict_in_generate=True", output_selection=True),
    _bad("bos_token_id=-1 must be a token id", bos_token_id=-1),
    _bad(r"eos_token_id=\[-1\] must be a token id or a list", eos_token_id=[-1]),
    _bad("pad_token_id=1.5 must be a token id", pad_token_id=1.5),
    *[_bad(f"mask_token_id={value!r} must be", mask_token_id=value) for value in (-1, 10**6, "a")],
    *[
        _bad(f"unknown argument '{name}'. Generation arguments: max_new_tokens", **{name: 3})
        for name in ("num_beams", "max_length", "top_k", "stopping_criteria", "temprature")
    ],
    *[
        _bad("generation_config must be a ShirgGenerationConfig, got .*by their names", generation_config=value)
        for value in (3, {"steps": 4}, "fast")
    ],
    _bad("streamer must be a BaseStreamer", streamer=3),
    *[_bad("generator must be a torch.Generator", generator=value, do_sample=True) for value in (3, "a", [3])],
    _bad("2 generators for a batch of 1: give one per row", generator=[torch.Generator()] * 2, do_sample=True),
]

_IDS = torch.ones(1, 5, dtype=torch.int64)
TENSORS = [
    *[_bad("draft_ids must be a tensor of ids, got", draft_ids=value) for value in (3, "a")],
    _bad(r"draft_ids must have the shape \(R,\) or \(B, R\), got \(2, 2, 2\)", draft_ids=_IDS.new_zeros(2, 2, 2)),
    _bad("draft_ids .*4 and max_new_tokens=5 contradict", draft_ids=_IDS[0, :4], max_new_tokens=5),
    _bad("draft_ids hold ids from 999 to 999, the model has 0 to 271", draft_ids=_IDS[0, :4] * 999),
    _bad("draft_ids must be a tensor of integer ids", draft_ids=torch.zeros(4)),
    *[_bad("attention_mask must have the prompt's shape", attention_mask=value) for value in (torch.ones(1, 3), "a")],
    _bad(
        "a row without a single real token: a prompt needs at least one",
        input_ids=_IDS,
        attention_mask=_IDS * 0,
        pixel_values=None,
        fovea_pixel_values=None,
        question_mask=None,
        patch_boxes=None,
    ),
    _bad("position_ids must have the prompt's shape", position_ids=torch.zeros(1, 3)),
    _bad("needs input_ids or inputs_embeds", input_ids=None),
    *[
        _bad("input_ids must be a tensor of integer ids with two dimensions", input_ids=value)
        for value in ("Which?", [[1, 2]], torch.ones(4, dtype=torch.int64), torch.ones(1, 4))
    ],
    _bad(
        "input_ids hold ids from 9999 to 9999, the model has 0 to 271: are they of its tokenizer",
        input_ids=_IDS * 9999,
    ),
    _bad("0 image tokens .* but 1 images give 245.*Use the processor that belongs", input_ids=_IDS),
    _bad("245 image tokens .* but 0 images give 0", pixel_values=None),
    _bad("245 image tokens .* but 2 images give 490", pixel_values=torch.zeros(2, 3, 192, 192)),
    *[
        _bad(r"pixel_values must have the shape \(views, 3, 192, 192\), got", pixel_values=torch.zeros(*shape))
        for shape in ((1, 3, 100, 100), (1, 1, 192, 192))
    ],
    _bad("needs fovea_pixel_values of 224 pixels", fovea_pixel_values=None),
    _bad("one fovea: got 1 images and 2 foveal views", fovea_pixel_values=torch.zeros(2, 3, 224, 224)),
    _bad(r"fovea_pixel_values must have the shape", fovea_pixel_values=torch.zeros(1, 3, 192, 192)),
    _bad("question_mask has shape .*one row per image", question_mask=torch.zeros(1, 3)),
    _bad("selection_budget=0 must be between 1 and the 256", selection_budget=torch.tensor([0])),
    _bad("245 image tokens .* give 69", selection_budget=torch.tensor([5])),
    _bad("selection_budget must be a tensor with one number per image", selection_budget=3),
    _bad("fovea_size must be a tensor with one number per image", fovea_size=3),
    _bad("inputs_embeds hold the images already, got", inputs_embeds=torch.zeros(1, 5, 32)),
    _bad(
        r"inputs_embeds must be a tensor of shape \(B, P, 32\), got torch.float32 \(1, 5, 7\)",
        input_ids=None,
        inputs_embeds=torch.zeros(1, 5, 7),
        pixel_values=None,
        fovea_pixel_values=None,
        question_mask=None,
        patch_boxes=None,
    ),
    _bad("unknown argument 'labels'", labels=_IDS),
]

ODD = [
    _same("None is the default", {}, block_length=None, steps=None, schedule=None, prefix_kv=None),
    _same("a ratio of 1 keeps all", {}, prefix_kv=1.0),
    _same("an integer ratio", {"prefix_kv": 1.0}, prefix_kv=1),
    _same("more steps than tokens", {}, steps=400),
    _same("one block of the whole length", {}, block_length=4),
    _same("a config object", {"steps": 2}, generation_config=ShirgGenerationConfig(max_new_tokens=4, steps=2)),
    _same("temperature 0 without drawing", {}, temperature=0),
    _same("a mask of floats", {}, attention_mask=None),
    _same(
        "a seeded draw twice",
        {"do_sample": True, "generator": torch.Generator().manual_seed(5)},
        do_sample=True,
        generator=torch.Generator().manual_seed(5),
    ),
]

CASES = [*ARGUMENTS, *TENSORS, *ODD]
