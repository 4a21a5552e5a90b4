"""Whether the patches that selection rates high lie where the answer is, and what is to be corrected if not.

On labelled boxes, the figure of a signal is the AUC: how probable it is that a patch inside the box is rated above one
outside. Per question it is that of each view which shows a part of the box, per image the mean of its questions, and
of the images the mean with a 95% bootstrap interval. One half of the images decides, the other half, which decided
nothing, reports.

- The sign of the text relevance `s` turns to -1 where the interval lies below 0.5. Where it holds 0.5 the sign is
  undecided and stays +1.
- The mean of the attention `a` at each position is subtracted where that makes the AUC of the deciding half higher:
  the interval of the differences lies above 0.

Shape suffixes: V views of one image, N patches of one view.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from configuration_shirg import ShirgLavidaConfig
from modeling_shirg.evaluation.labelled_boxes import LabelledBox
from modeling_shirg.published_selections_shirg import METHODS

_RESAMPLES = 2000
_FEWEST_IMAGES = 4
_DIGITS = 4


@dataclass(frozen=True)
class Figure:
    """A mean over images, of the AUC or of a difference of two, with its 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    images: int

    def side_of(self, level: float) -> int:
        """1 or -1 if the whole interval lies above or below `level`, else 0."""
        return (self.low > level) - (self.high < level)


@dataclass(frozen=True)
class Seen:
    """What the model's signals say of the patches of one question's views.

    Args:
        name: of the image.
        inside_VN: which patches are in the box.
        shown_VN: which patches show the image, not the padding around it.
        attention_VN: the attention as the tower gives it, float32; `None` where it is not read.
        relevance: relevance for the question by `text_relevance`, float32 (V, N) each.
    """

    name: str
    inside_VN: torch.Tensor
    shown_VN: torch.Tensor
    attention_VN: torch.Tensor | None
    relevance: dict[str, torch.Tensor]

    @property
    def telling_views(self) -> list[int]:
        """The views that have patches of the image both inside and outside the box."""
        rest_VN = self.shown_VN & ~self.inside_VN
        return (self.inside_VN.any(-1) & rest_VN.any(-1)).nonzero()[:, 0].tolist()

    def auc_of(self, signal_VN: torch.Tensor) -> float:
        """Mean AUC of the telling views."""
        figures = [
            auc(signal_VN[view][self.shown_VN[view]], self.inside_VN[view][self.shown_VN[view]])
            for view in self.telling_views
        ]
        return sum(figures) / len(figures)


def auc(scores_N: torch.Tensor, inside_N: torch.Tensor) -> float:
    """How probable it is that a patch inside has a higher score than one outside, equal ones counting half.

    The Mann-Whitney statistic over the number of pairs; there must be patches of both kinds.
    """
    ordered_N = scores_N.double().sort().values
    first_N, last_N = (torch.searchsorted(ordered_N, scores_N.double(), right=right) for right in (False, True))
    ranks_N = (first_N + last_N + 1) / 2  # equal scores share their mean rank
    num_inside = int(inside_N.sum())
    wins = ranks_N[inside_N].sum().item() - num_inside * (num_inside + 1) / 2
    return wins / (num_inside * (len(inside_N) - num_inside))


def bootstrapped(values: list[float], resamples: int = _RESAMPLES, seed: int = 0) -> Figure:
    """The mean of one value per image, and the percentile interval of the means of so many resamples of the images."""
    rng, given = np.random.default_rng(seed), np.array(values)
    means = [given[rng.integers(len(given), size=len(given))].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(*(round(float(value), _DIGITS) for value in (given.mean(), low, high)), len(given))


def patches_inside(patch_boxes_N4: torch.Tensor, box: tuple[float, float, float, float]) -> torch.Tensor:
    """Which patches are in the box, bool (N,): those that hold at least half as much of it as any patch does.

    So a box that is smaller than a patch has the patches that hold it, and a large one those that are half covered.

    Args:
        patch_boxes_N4: (x, y, width, height) as fractions of the image.
        box: (left, top, right, bottom) as fractions of the image.
    """
    starts_N2, sizes_N2 = patch_boxes_N4[:, :2], patch_boxes_N4[:, 2:]
    low, high = torch.tensor(box[:2]), torch.tensor(box[2:])
    shared_N2 = torch.minimum(starts_N2 + sizes_N2, high) - torch.maximum(starts_N2, low)
    area_N = shared_N2.clamp(min=0).prod(-1)
    return (area_N > 0) & (area_N >= area_N.max() / 2)


def readable_signals(config: ShirgLavidaConfig) -> frozenset[str]:
    """Which of attention and relevance the selection of this config reads.

    Raises:
        ValueError: neither.
    """
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
    """What the model's uncalibrated signals say about each question, and how many boxes no view shows a part of.

    Args:
        model, processor: of one preset that scores patches.
        boxes: questions with their boxes.
        sources: ways of comparing patches with a question to look at: any of `text_relevances`.

    Raises:
        ValueError: an image cannot be read, or a box is not within its image.
    """
    reads = readable_signals(model.config)
    if not sources and "attention" not in reads:
        raise ValueError(
            f"prune_method={model.config.prune_method!r} reads relevance alone, and there is none to look at: choose "
            "text_relevance='lm' or 'siglip'."
        )
    seen, unseen = [], 0
    for box in boxes:
        found = _look_at(model, processor, box, sources if "relevance" in reads else (), reads)
        if found.telling_views:
            seen.append(found)
        else:
            unseen += 1
    return seen, unseen


@torch.no_grad()
def _look_at(model, processor, box: LabelledBox, sources: tuple[str, ...], reads: frozenset[str]) -> Seen:
    image = _read(processor, box)
    fractions = box.box_within(*image.size)
    content = [{"type": "image", "image": image}, {"type": "text", "text": box.question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    relevance, attention_VN = {}, None
    for source in sources or ("none",):
        views = model.model.get_view_tokens(
            inputs["input_ids"],
            inputs["pixel_values"],
            inputs.get("fovea_pixel_values"),
            inputs["question_mask"],
            inputs.get("relevance_input_ids"),
            reads,
            source,
            calibrated=False,
        )
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
    return Seen(
        name=box.name,
        inside_VN=torch.stack([patches_inside(boxes_N4, fractions) for boxes_N4 in boxes_VN4]) & shown_VN,
        shown_VN=shown_VN,
        attention_VN=attention_VN,
        relevance=relevance,
    )


def _read(processor, box: LabelledBox) -> Image.Image:
    """The upright RGB image."""
    image_processor = processor.image_processor
    try:
        return image_processor.process_image(image_processor.fetch_images(box.image))
    except ValueError as error:
        raise ValueError(f"{box.name}: {error}") from None


def calibration_of(
    seen: list[Seen],
    config: ShirgLavidaConfig,
    data: str,
    subtract_mean: Literal["if_better", "always", "never"] = "if_better",
) -> dict[str, Any]:
    """What to correct, as the field `calibration` of a config has it (see calibration_shirg.py).

    Args:
        seen: what `look` found with a model of `config`.
        config: of the preset whose views were looked at.
        data: what was looked at, in words, for the record.
        subtract_mean: whether the mean of the attention is subtracted; by default where it raises the AUC.

    Raises:
        ValueError: there are too few images for two halves.
    """
    deciding, reporting = _halves(seen)
    record = {"data": data, "prune_method": config.prune_method}
    relevance = {source: {**_sign(deciding, reporting, source), **record} for source in seen[0].relevance}
    if seen[0].attention_VN is None:
        return {"relevance": relevance, "attention": []}
    views = {"view_policy": config.view_policy, "grid": config.selected_grid, "source": config.attention_source}
    return {"relevance": relevance, "attention": [{**views, **_mean(deciding, reporting, subtract_mean), **record}]}


def _halves(seen: list[Seen]) -> tuple[list[Seen], list[Seen]]:
    """All questions of one half of the images, drawn by a fixed seed, and of the other half."""
    names = sorted({each.name for each in seen})
    if len(names) < _FEWEST_IMAGES:
        raise ValueError(
            f"Calibration needs at least {_FEWEST_IMAGES} images whose box is partly in view, two to decide and two "
            f"to report; got {len(names)}. Hundreds make its intervals narrow."
        )
    order = np.random.default_rng(0).permutation(len(names))
    first = {names[place] for place in order[: (len(names) + 1) // 2]}
    return [each for each in seen if each.name in first], [each for each in seen if each.name not in first]


def _per_image(seen: list[Seen], signal_of: Callable[[Seen], torch.Tensor]) -> list[float]:
    """The mean AUC of each image's questions."""
    by_name: dict[str, list[float]] = {}
    for each in seen:
        by_name.setdefault(each.name, []).append(each.auc_of(signal_of(each)))
    return [sum(figures) / len(figures) for figures in by_name.values()]


def _sign(deciding: list[Seen], reporting: list[Seen], source: str) -> dict[str, Any]:
    decided = bootstrapped(_per_image(deciding, lambda each: each.relevance[source]))
    side = decided.side_of(0.5)
    sign = -1 if side < 0 else 1
    before, after = (
        bootstrapped(_per_image(reporting, lambda each, factor=factor: factor * each.relevance[source]))
        for factor in (1, sign)
    )
    return {
        "sign": sign,
        "verdict": {1: "follows", -1: "inverted", 0: "undecided"}[side],
        "decided": asdict(decided),
        "held_out": asdict(before),
        "held_out_corrected": asdict(after),
    }


def _mean(deciding: list[Seen], reporting: list[Seen], subtract_mean: str) -> dict[str, Any]:
    # One question of each image: the attention of all of them is the same.
    of_images = {each.name: each.attention_VN for each in deciding}
    mean = [float(f"{value:.6g}") for value in torch.cat(list(of_images.values())).mean(0).tolist()]
    mean_N = torch.tensor(mean, dtype=torch.float32)

    def both(seen: list[Seen]) -> tuple[list[float], list[float]]:
        """AUCs as it is and without the mean."""
        as_it_is = _per_image(seen, lambda each: each.attention_VN)
        return as_it_is, _per_image(seen, lambda each: each.attention_VN - mean_N)

    # A view's own share in the mean makes what is left of it smaller, all of it alike: no rank changes.
    gain = bootstrapped([after - before for before, after in zip(*both(deciding), strict=True)])
    side = gain.side_of(0.0)
    subtracted = subtract_mean == "always" or (subtract_mean == "if_better" and side > 0)
    before, after = both(reporting)
    return {
        "mean": mean if subtracted else None,
        "verdict": {1: "better", -1: "worse", 0: "undecided"}[side],
        "decided": asdict(gain),
        "held_out": asdict(bootstrapped(before)),
        "held_out_corrected": asdict(bootstrapped(after)),
    }
