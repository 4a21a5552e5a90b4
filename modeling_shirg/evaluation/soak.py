"""Mixed requests to one process for a long time: what it answers, and what its memory does.

A request is a pure function of (seed, index). Its answer is right if every row of it is what a model says that was
loaded for this row alone; some requests are bad on purpose, and right if they are refused by a `ValueError`.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, TextDiffusionStreamer

from configuration_shirg import PRESETS, ShirgLavidaConfig

_QUESTIONS = (
    "What is in cell {}?",
    "What color is the triangle?",
    "What is the value of V?",
    "Which?",
    "Describe everything that can be seen in this picture, from the upper left corner to the lower right one.",
)
_SMALLEST_SIDE, _LARGEST_SIDE = 12, 1600
_MODES = ("RGB", "RGBA", "L", "P", "CMYK", "1")
# What a request may ask of `generate` besides the defaults; each fits the bundled checkpoint's 8 tokens.
_GENERATION = (
    {},
    {"steps": 4},
    {"max_new_tokens": 16, "block_length": 8},
    {"step_ratio": 0.5},
    {"schedule": "shift", "steps": 4},
    {"remasking": "entropy"},
    {"use_cache": False},
    {"prefix_kv": 0.6},
    {"prefix_kv": 0.3, "prefix_dtype": "bfloat16"},
    {"prefix_dtype": "int8"},
)
_BAD = ("image", "generation", "placeholder", "box")
_BAD_SHARE, _STREAM_SHARE, _OPTION_SHARE = 0.1, 0.3, 0.5
_MOST_ROWS = 4


class Row(NamedTuple):
    """One image and its question: side lengths and mode of the picture, whether it comes as a file's bytes."""

    picture: int
    width: int
    height: int
    mode: str
    as_file: bool
    question: str


@dataclass(frozen=True)
class SoakRequest:
    """Rows that are asked together under one system. `bad` names what is wrong with the request, if something is."""

    system: str
    rows: tuple[Row, ...]
    generation: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None
    boxes: tuple[tuple[float, ...], ...] | None = None
    stream: bool = False
    bad: str | None = None

    def alone(self) -> Iterator["SoakRequest"]:
        """The same request for each of its rows by itself, unstreamed."""
        for index, row in enumerate(self.rows):
            boxes = None if self.boxes is None else self.boxes[index : index + 1]
            yield replace(self, rows=(row,), boxes=boxes, stream=False)


class Slope(NamedTuple):
    """Growth per hour with the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass
class SoakResult:
    """What a soak saw. `samples` are (seconds since the start, resident bytes); counts are of requests."""

    samples: list[tuple[float, int]] = field(default_factory=list)
    systems: Counter = field(default_factory=Counter)
    features: Counter = field(default_factory=Counter)
    rows: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def draw_request(seed: int, index: int, config: ShirgLavidaConfig) -> SoakRequest:
    """Request number `index` for a checkpoint of this config; the systems take turns."""
    rng = np.random.default_rng([seed, index])
    system = list(PRESETS)[index % len(PRESETS)]
    bad = str(rng.choice(_BAD)) if rng.random() < _BAD_SHARE else None
    stream = rng.random() < _STREAM_SHARE
    rows = tuple(_row(rng) for _ in range(1 if stream else int(rng.integers(1, _MOST_ROWS + 1))))
    generation = dict(_GENERATION[int(rng.integers(len(_GENERATION)))])
    config = config.with_preset(system)
    budget = boxes = None
    if config.view_policy == "foveal" and rng.random() < _OPTION_SHARE:
        boxes = tuple(_box(rng, row) for row in rows)
    if config.selects and config.selection_method not in ("none", "pool") and rng.random() < _OPTION_SHARE:
        views = config.num_selected_views
        budget = views * int(rng.integers(config.selection_budget // views // 2, config.selection_budget // views + 1))
    return SoakRequest(system, rows, generation, budget, boxes, stream, bad)


def answer(request: SoakRequest, model: Any, processor: Any, pictures: Sequence[Image.Image]) -> list[str]:
    """The texts of a request's rows. With `stream` they are the last draft that the streamer heard."""
    images = [_image(row, pictures) for row in request.rows]
    options = {"padding": True}
    if request.budget is not None:
        options["selection_budget"] = request.budget
    if request.boxes is not None:
        options["fovea_boxes"] = [list(box) for box in request.boxes]
    questions = [row.question for row in request.rows]
    generation = dict(request.generation)
    if request.bad == "image":
        images[-1] = b"this is no picture"
    elif request.bad == "generation":
        generation = {"max_new_tokens": 8, "block_length": 3}
    elif request.bad == "placeholder":
        questions[-1] += f" {processor.image_token}"
    elif request.bad == "box":
        options["fovea_boxes"] = [(5, 5)] * len(images)
    contents = [
        [{"type": "image", "image": image}, {"type": "text", "text": question}]
        for image, question in zip(images, questions, strict=True)
    ]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}] for content in contents],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=options,
    )
    heard = _Heard(processor.tokenizer) if request.stream else None
    sequences_BS = model.generate(**inputs, streamer=heard, **generation)
    response_BR = sequences_BS[:, inputs["input_ids"].shape[1] :] if heard is None else heard.draft_BR
    return processor.post_process_image_text_to_text(response_BR)


def soak(
    requests: Sequence[SoakRequest],
    references: Sequence[list[str] | None],
    loaded: dict[str, tuple[Any, Any]],
    pictures: Sequence[Image.Image],
    seconds: float,
    seed: int,
) -> Iterator[SoakResult]:
    """Answers requests in a drawn order for `seconds`, and yields the result so far after each of them.

    Args:
        requests: the distinct requests.
        references: for each the answers of its rows one by one; `None` for a bad one.
        loaded: model and processor of each system.
        pictures: what the rows' pictures are made of.
        seconds: how long to go on.
        seed: of the order, in which each pass has all requests once.
    """
    result, process, rng = SoakResult(), psutil.Process(), np.random.default_rng([seed, len(requests)])
    started = time.monotonic()
    while True:
        for index in rng.permutation(len(requests)).tolist():
            _judge(result, index, requests[index], references[index], loaded, pictures)
            result.samples.append((time.monotonic() - started, process.memory_info().rss))
            yield result
            if time.monotonic() - started >= seconds:
                return


def _judge(
    result: SoakResult,
    index: int,
    request: SoakRequest,
    reference: list[str] | None,
    loaded: dict[str, tuple[Any, Any]],
    pictures: Sequence[Image.Image],
) -> None:
    """Answer one request and write into `result` whether that is right."""
    result.systems[request.system] += 1
    result.features.update(_features(request))
    try:
        texts = answer(request, *loaded[request.system], pictures)
    except ValueError as error:
        if request.bad is None:
            result.wrong.append(f"request {index} ({request.system}): {error}")
        result.refused += 1
        return
    result.rows += len(texts)
    if request.bad is not None:
        result.wrong.append(f"request {index} ({request.system}): its bad {request.bad} was not refused")
    elif texts != reference:
        result.wrong.append(f"request {index} ({request.system}): {texts}, alone {reference}")


def growth_per_hour(samples: Sequence[tuple[float, float]], blocks: int = 20) -> Slope:
    """Least squares through the means of `blocks` blocks of samples (seconds, value), as value per hour.

    Samples that follow each other are alike, so an interval from them would be too narrow; means of long blocks are
    nearly independent. The interval is Student's with blocks - 2 degrees of freedom.

    Raises:
        ValueError: there are fewer samples than blocks.
    """
    if len(samples) < blocks:
        raise ValueError(f"A slope needs at least {blocks} samples, got {len(samples)}: soak for longer.")
    hours_N, values_N = np.array(samples, dtype=np.float64).T
    x_K = np.array([part.mean() for part in np.array_split(hours_N / 3600, blocks)])
    y_K = np.array([part.mean() for part in np.array_split(values_N, blocks)])
    x_K = x_K - x_K.mean()
    slope = (x_K @ y_K) / (x_K @ x_K)
    rest_K = y_K - y_K.mean() - slope * x_K
    error = np.sqrt(rest_K @ rest_K / (blocks - 2) / (x_K @ x_K))
    reach = _student_quantile(blocks - 2) * error
    return Slope(float(slope), float(slope - reach), float(slope + reach))


def _student_quantile(freedom: int) -> float:
    """The 97.5% quantile of Student's t, by Hill's expansion of the normal one (Commun. ACM 13, 1970): 3 digits."""
    z = 1.959963984540054
    g1, g2 = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + g1 / freedom + g2 / freedom**2 + g3 / freedom**3


class _Heard(TextDiffusionStreamer):
    """Keeps the last draft instead of printing it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer)
        self.draft_BR = torch.empty(1, 0, dtype=torch.int64)

    def put_draft(self, value: torch.Tensor, **kwargs: Any) -> None:
        self.draft_BR = value

    def put(self, value: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        pass


def _row(rng: np.random.Generator) -> Row:
    logs = np.log([_SMALLEST_SIDE, _LARGEST_SIDE])
    width, height = (round(float(np.exp(rng.uniform(*logs)))) for _ in range(2))
    question = str(rng.choice(_QUESTIONS)).format(int(rng.integers(1, 10)))
    return Row(int(rng.integers(1 << 16)), width, height, str(rng.choice(_MODES)), bool(rng.random() < 0.5), question)


def _box(rng: np.random.Generator, row: Row) -> tuple[float, ...]:
    left, top = rng.uniform(0, row.width / 2), rng.uniform(0, row.height / 2)
    return float(left), float(top), float(left + row.width / 3), float(top + row.height / 3)


def _image(row: Row, pictures: Sequence[Image.Image]) -> Image.Image | bytes:
    picture = pictures[row.picture % len(pictures)].resize((row.width, row.height)).convert(row.mode)
    if not row.as_file:
        return picture
    file = BytesIO()
    picture.save(file, "TIFF" if row.mode == "CMYK" else "PNG")
    return file.getvalue()


def _features(request: SoakRequest) -> list[str]:
    names = ["batched" if len(request.rows) > 1 else "single"]
    names += ["streamed"] if request.stream else []
    names += ["own budget"] if request.budget is not None else []
    names += ["fovea boxes"] if request.boxes is not None else []
    names += ["bad on purpose"] if request.bad is not None else []
    return names + [name for name in ("prefix_kv", "prefix_dtype", "use_cache") if name in request.generation]
