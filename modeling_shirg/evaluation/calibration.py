"""Whether the selection's signals are high where the answer is, and the corrections if not.

The figure of a signal is the AUC on labelled boxes: the probability that a patch inside the box is rated above a patch
outside, a mean over the views that show a part of the box, over the questions of an image, and over images. One half
of the images decides, the other half reports.

- The sign of the text relevance `s` turns to -1 where the interval lies below 0.5.
- The mean of the attention `a` at each position is subtracted where that raises the AUC of the deciding half: the
  interval of the differences lies above 0.

Shape suffixes: V views of one image, N patches of one view.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from configuration_shirg import ShirgLavidaConfig
from configuration_shirg.image_reading_shirg import read_image
from modeling_shirg.evaluation.intervals import mean_interval
from modeling_shirg.evaluation.labelled_boxes import LabelledBox
from modeling_shirg.published_selections_shirg import METHODS
from modeling_shirg.running.ask import conversation

_FEWEST_IMAGES = 4


@dataclass(frozen=True)
class Seen:
    """The model's signals at the patches of one question's views; `name` is the image's.

    `inside_VN` marks patches in the box, `shown_VN` patches of the image (not padding). `attention_VN` is `None` where
    it is not read; `relevance` has a float32 (V, N) for each way of `text_relevance`.
    """

    name: str
    inside_VN: torch.Tensor
    shown_VN: torch.Tensor
    attention_VN: torch.Tensor | None
    relevance: dict[str, torch.Tensor]

    @property
    def telling_views(self) -> list[int]:
        """The views with patches of the image both inside and outside the box."""
        rest_VN = self.shown_VN & ~self.inside_VN
        return (self.inside_VN.any(-1) & rest_VN.any(-1)).nonzero()[:, 0].tolist()

    def auc_of(self, signal_VN: torch.Tensor) -> float:
        """Mean AUC of the telling views."""
        aucs = [
            auc(signal_VN[view][self.shown_VN[view]], self.inside_VN[view][self.shown_VN[view]])
            for view in self.telling_views
        ]
        return sum(aucs) / len(aucs)


def auc(scores_N: torch.Tensor, inside_N: torch.Tensor) -> float:
    """The probability that a patch inside scores higher than one outside, equal scores counting half."""
    ordered_N = scores_N.double().sort().values
    first_N, last_N = (torch.searchsorted(ordered_N, scores_N.double(), right=right) for right in (False, True))
    ranks_N = (first_N + last_N + 1) / 2  # equal scores share their mean rank
    num_inside = int(inside_N.sum())
    wins = ranks_N[inside_N].sum().item() - num_inside * (num_inside + 1) / 2
    return wins / (num_inside * (len(inside_N) - num_inside))


def bootstrapped(values: list[float]) -> dict[str, Any]:
    """The mean of one value per image, its 95% bootstrap interval `low` to `high`, and the number of images."""
    figures = (float(np.mean(values)), *mean_interval(values, 0))
    return {name: round(value, 4) for name, value in zip(("mean", "low", "high"), figures, strict=True)} | {
        "images": len(values)
    }


def _side(figure: dict[str, Any], level: float) -> int:
    """1 or -1 if the whole interval lies above or below `level`, else 0."""
    return (figure["low"] > level) - (figure["high"] < level)


def patches_inside(patch_boxes_N4: torch.Tensor, box: tuple[float, float, float, float]) -> torch.Tensor:
    """Whether each patch is in the box, bool (N,): it holds at least half as much of the box as any patch does.

    In fractions of the image, patches are (x, y, width, height) and the box (left, top, right, bottom).
    """
    starts_N2, sizes_N2 = patch_boxes_N4[:, :2], patch_boxes_N4[:, 2:]
    low, high = torch.tensor(box[:2]), torch.tensor(box[2:])
    shared_N2 = torch.minimum(starts_N2 + sizes_N2, high) - torch.maximum(starts_N2, low)
    area_N = shared_N2.clamp(min=0).prod(-1)
    return (area_N > 0) & (area_N >= area_N.max() / 2)


def readable_signals(config: ShirgLavidaConfig) -> frozenset[str]:
    """Which of attention and relevance the selection of this config reads; neither is a `ValueError`."""
    method = METHODS.get(config.selection_method)
    reads = frozenset() if method is None else method.needs & {"attention", "relevance"}
    if not reads:
        raise ValueError(
            f"prune_method={config.prune_method!r} reads neither attention nor relevance, so there is nothing to "
            "calibrate. Name a preset that scores patches with --prune_method, such as shirg."
        )
    return reads


def text_relevances(model, processor) -> tuple[str, ...]:
    """The ways in which this checkpoint can compare patches with a question."""
    has_tower = model.config.relevance_text_config is not None and model.config.vision_config.vision_use_head
    return ("lm", "siglip") if has_tower and processor.relevance_tokenizer is not None else ("lm",)


def look(model, processor, boxes: Iterable[LabelledBox], sources: tuple[str, ...]) -> tuple[list[Seen], int]:
    """The model's uncalibrated signals for each question, and the number of boxes that no view shows a part of.

    `sources` are ways of comparing patches with a question, any of `text_relevances`. An unreadable image, and a box
    outside its image, are a `ValueError`.
    """
    reads = readable_signals(model.config)
    if not sources and "attention" not in reads:
        raise ValueError(
            f"prune_method={model.config.prune_method!r} reads relevance alone, and there is none to look at: choose "
            "text_relevance='lm' or 'siglip'."
        )
    seen = [_look_at(model, processor, box, sources if "relevance" in reads else (), reads) for box in boxes]
    telling = [question for question in seen if question.telling_views]
    return telling, len(seen) - len(telling)


@torch.no_grad()
def _look_at(model, processor, box: LabelledBox, sources: tuple[str, ...], reads: frozenset[str]) -> Seen:
    image = read_image(box.image)
    fractions = box.box_within(*image.size)
    chat, form = conversation(image, box.question), {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    inputs = processor.apply_chat_template(chat, add_generation_prompt=True, **form).to(model.device)
    names = ("input_ids", "pixel_values", "fovea_pixel_values", "question_mask", "relevance_input_ids")
    given = {name: inputs.get(name) for name in names}
    relevance, attention_VN = {}, None
    for source in sources or ("none",):
        views = model.model.get_view_tokens(**given, needs=reads, text_relevance=source, calibrated=False)
        if "attention" in reads:
            attention_VN = torch.stack([view.attention for view in views]).cpu()
        if source in sources:
            if views[0].relevance is None:
                raise ValueError(f"{box.name}: the question {box.question!r} has no words.")
            relevance[source] = torch.stack([view.relevance for view in views]).cpu()
    num_views, num_patches = model.config.num_selected_views, model.config.selected_grid**2
    boxes_VN4 = inputs["patch_boxes"][0, -num_views * num_patches :].cpu().unflatten(0, (num_views, num_patches))
    centers_VN2 = boxes_VN4[..., :2] + boxes_VN4[..., 2:] / 2
    shown_VN = ((centers_VN2 > 0) & (centers_VN2 < 1)).all(-1)
    inside_VN = torch.stack([patches_inside(boxes_N4, fractions) for boxes_N4 in boxes_VN4]) & shown_VN
    return Seen(box.name, inside_VN, shown_VN, attention_VN, relevance)


def calibration_of(
    seen: list[Seen],
    config: ShirgLavidaConfig,
    data: str,
    subtract_mean: Literal["if_better", "always", "never"] = "if_better",
) -> dict[str, Any]:
    """The corrections, as the field `calibration` of a config (see calibration_shirg.py).

    Args:
        seen: from `look` with a model of `config`.
        config: of the preset.
        data: description of the labelled boxes, for the record.
        subtract_mean: whether the mean of the attention is subtracted; by default where it raises the AUC.
    """
    names = sorted({question.name for question in seen})
    if len(names) < _FEWEST_IMAGES:
        raise ValueError(
            f"Calibration needs at least {_FEWEST_IMAGES} images whose box is partly in view, two to decide and two "
            f"to report; got {len(names)}. Hundreds make its intervals narrow."
        )
    order = np.random.default_rng(0).permutation(len(names))
    first = {names[number] for number in order[: (len(names) + 1) // 2]}
    halves = [question for question in seen if question.name in first], [q for q in seen if q.name not in first]
    record = {"data": data, "prune_method": config.prune_method}
    relevance = {source: {**_sign(*halves, source), **record} for source in seen[0].relevance}
    if seen[0].attention_VN is None:
        return {"relevance": relevance, "attention": []}
    views = {"view_policy": config.view_policy, "grid": config.selected_grid, "source": config.attention_source}
    return {"relevance": relevance, "attention": [{**views, **_mean(*halves, subtract_mean), **record}]}


def _per_image(seen: list[Seen], signal_of: Callable[[Seen], torch.Tensor]) -> list[float]:
    """The mean AUC of each image's questions."""
    by_name: dict[str, list[float]] = {}
    for question in seen:
        by_name.setdefault(question.name, []).append(question.auc_of(signal_of(question)))
    return [sum(aucs) / len(aucs) for aucs in by_name.values()]


def _sign(deciding: list[Seen], reporting: list[Seen], source: str) -> dict[str, Any]:
    decided = bootstrapped(_per_image(deciding, lambda question: question.relevance[source]))
    side = _side(decided, 0.5)
    sign, verdict = {1: (1, "follows"), -1: (-1, "inverted"), 0: (1, "undecided")}[side]
    before = bootstrapped(_per_image(reporting, lambda question: question.relevance[source]))
    after = bootstrapped(_per_image(reporting, lambda question: sign * question.relevance[source]))
    return {"sign": sign, "verdict": verdict, "decided": decided, "held_out": before, "held_out_corrected": after}


def _mean(deciding: list[Seen], reporting: list[Seen], subtract_mean: str) -> dict[str, Any]:
    # Attention does not depend on the question: one question of each image.
    of_images = {question.name: question.attention_VN for question in deciding}
    mean = [float(f"{value:.6g}") for value in torch.cat(list(of_images.values())).mean(0).tolist()]
    mean_N = torch.tensor(mean, dtype=torch.float32)

    def both(seen: list[Seen]) -> tuple[list[float], list[float]]:
        as_it_is = _per_image(seen, lambda question: question.attention_VN)
        return as_it_is, _per_image(seen, lambda question: question.attention_VN - mean_N)

    # A view's own share in the mean scales the rest of that view alike: no rank changes.
    gain = bootstrapped([after - before for before, after in zip(*both(deciding), strict=True)])
    side = _side(gain, 0.0)
    subtracted = subtract_mean == "always" or (subtract_mean == "if_better" and side > 0)
    verdict = {1: "better", -1: "worse", 0: "undecided"}[side]
    before, after = map(bootstrapped, both(reporting))
    figures = {"decided": gain, "held_out": before, "held_out_corrected": after}
    return {"mean": mean if subtracted else None, "verdict": verdict, **figures}
