"""The arithmetic of a denoising step: how many tokens it fills, what it predicts, and which predictions it keeps.

Pure functions and small classes on plain tensors; they know neither the model nor its generation config.

Shape suffixes: B batch, L block length, V vocabulary, N denoising steps of a block, X any further axes.
"""

from collections.abc import Callable, Sequence

import torch


# ---------------------------------------------------------------- how many tokens per step
def _shift(time: torch.Tensor, shift: float) -> torch.Tensor:
    return shift * time / (1 + (shift - 1) * time)


def _cosine(time: torch.Tensor, shift: float) -> torch.Tensor:
    return (1 - torch.cos(torch.pi * time)) / 2


def _logit_normal(time: torch.Tensor, shift: float) -> torch.Tensor:
    """Distribution function of the standard logit-normal."""
    return torch.special.ndtr(torch.logit(time))


# Monotone maps of [0, 1] onto itself; `None` is not a map, see `transfer_counts`.
SCHEDULES: dict[str | None, Callable[[torch.Tensor, float], torch.Tensor] | None] = {
    None: None,
    "linear": lambda time, shift: time,
    "shift": _shift,
    "cosine": _cosine,
    "logit_normal": _logit_normal,
}


def transfer_counts(num_masks: int, steps: int, schedule: str | None = None, shift: float = 3.0) -> list[int]:
    """How many of `num_masks` tokens each step fills, as LaViDa's generation does (arXiv:2505.16839).

    Without a schedule: evenly, the remainder to the first steps (LLaDA, arXiv:2502.09992); trailing steps may be 0.
    With a schedule f: the differences of `int(f(i / steps) * num_masks)`, at least 1 each, the surplus taken back one
    at a time from the entries above 1 in turn, and the whole reversed; at most `num_masks` steps. f is evaluated in
    float32 on the CPU: the truncation makes the counts depend on the precision.

    Returns:
        At most `steps` counts >= 0 that sum to `num_masks`.
    """
    if schedule is None:
        return [num_masks // steps + (step < num_masks % steps) for step in range(steps)]
    steps = min(steps, num_masks)
    if steps == 0:
        return []
    reached = (SCHEDULES[schedule](torch.linspace(0, 1, steps + 1, device="cpu"), shift) * num_masks).to(torch.int64)
    reached[-1] = num_masks  # f(1) = 1, which float32 may miss for some shifts; a token would stay masked
    counts = reached.diff().clamp(min=1).tolist()
    surplus, step = sum(counts) - num_masks, 0
    while surplus > 0:
        if counts[step] > 1:
            counts[step] -= 1
            surplus -= 1
        step = (step + 1) % steps
    return counts[::-1]


def transfer_table(
    num_masks: list[int], steps: int, schedule: str | None = None, shift: float = 3.0
) -> torch.LongTensor:
    """`transfer_counts` of every row, `(B, N)`, zero-padded to the steps of the longest row."""
    rows = [transfer_counts(count, steps, schedule, shift) for count in num_masks]
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64)


# ---------------------------------------------------------------- which tokens
def _top_confidence(probs_BLV: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Probability of the predicted token."""
    return probs_BLV.gather(-1, tokens_BL[..., None]).squeeze(-1)


def _negative_entropy(probs_BLV: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
    return (probs_BLV * torch.log(probs_BLV + 1e-10)).sum(-1)


def _margin(probs_BLV: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Distance of the two largest probabilities."""
    top_BL2 = probs_BLV.topk(2, dim=-1).values
    return top_BL2[..., 0] - top_BL2[..., 1]


# The confidence of a prediction, by `remasking`; a step keeps the largest. `None` is a uniform draw.
CONFIDENCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None] = {
    "low_confidence": _top_confidence,
    "entropy": _negative_entropy,
    "margin": _margin,
    "random": None,
}


class RowNoise:
    """Uniform float64 draws with one independent stream per batch row.

    Row r's stream is seeded by the r-th number that `generator` yields, and a row draws only in the steps in which it
    has something to fill. So a row's draws depend on the generator's state and on r, not on the batch size, the
    padding or the other rows: row 0 of any batch equals a single run. For other rows pass a list of generators, one
    per row, which are used as they are. Streams live on the generator's device; another device type gives other
    numbers.
    """

    def __init__(
        self, generator: torch.Generator | list[torch.Generator] | None, batch_size: int, device: torch.device
    ):
        given = generator if isinstance(generator, (list, tuple)) else [generator]
        if not all(isinstance(one, torch.Generator) for one in given) and generator is not None:
            raise ValueError(f"generator must be a torch.Generator or one for each row, got {generator!r:.100}.")
        if isinstance(generator, (list, tuple)):
            if len(generator) != batch_size:
                raise ValueError(f"Got {len(generator)} generators for a batch of {batch_size}: give one per row.")
            self.streams = list(generator)
            return
        drawn_on = torch.device("cpu") if device.type == "mps" else device
        home = drawn_on if generator is None else generator.device
        seeds = [torch.randint(2**62, (1,), generator=generator, device=home).item() for _ in range(batch_size)]
        self.streams = [torch.Generator(device=home).manual_seed(seed) for seed in seeds]

    def draw(self, like_BX: torch.Tensor, active_B: list[bool]) -> torch.Tensor:
        """Draws in [0, 1) of the shape and on the device of `like_BX`, in float64; rows not in `active_B` get 0.5."""
        draws_BX = torch.full(like_BX.shape, 0.5, dtype=torch.float64, device=like_BX.device)
        for row, (stream, active) in enumerate(zip(self.streams, active_B, strict=True)):
            if active:
                draws_BX[row] = torch.rand(
                    like_BX.shape[1:], generator=stream, dtype=torch.float64, device=stream.device
                ).to(like_BX.device)
        return draws_BX


class MaskedDiffusionSampler:
    """One prediction and its confidence per position, in float64 (arXiv:2409.02908: low precision Gumbel noise biases
    masked diffusion).

    Args:
        remasking: name of the confidence, a key of `CONFIDENCES`.
        temperature: of the Gumbel draw, > 0; `None` takes the most probable token.
        suppress_tokens: ids that are never predicted and have no probability.
        noise: needed with a temperature or `remasking="random"`.
    """

    def __init__(
        self,
        remasking: str,
        temperature: float | None = None,
        suppress_tokens: Sequence[int] = (),
        noise: RowNoise | None = None,
    ):
        self.confidence = CONFIDENCES[remasking]
        self.temperature = temperature
        self.suppress_tokens = suppress_tokens
        self.noise = noise

    def __call__(self, logits_BLV: torch.Tensor, masked_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and confidences, both `(B, L)`. The confidence at a position that is not masked is -inf."""
        if logits_BLV.device.type == "mps":  # Apple's GPUs have no float64
            tokens_BL, confidence_BL = self(logits_BLV.cpu(), masked_BL.cpu())
            return tokens_BL.to(masked_BL.device), confidence_BL.float().to(masked_BL.device)
        logits_BLV = self._suppress(logits_BLV.to(torch.float64))
        active_B = masked_BL.any(-1).tolist() if self.noise is not None else []
        tokens_BL = self._predict(logits_BLV, active_B)
        if self.confidence is None:
            confidence_BL = self.noise.draw(masked_BL, active_B)
        else:
            confidence_BL = self.confidence(logits_BLV.softmax(-1), tokens_BL)
        return tokens_BL, confidence_BL.masked_fill(~masked_BL, -torch.inf)

    def _suppress(self, logits_BLV: torch.Tensor) -> torch.Tensor:
        if not self.suppress_tokens:
            return logits_BLV
        if max(self.suppress_tokens) >= logits_BLV.shape[-1]:
            raise ValueError(
                f"suppress_tokens holds id {max(self.suppress_tokens)}, the model has {logits_BLV.shape[-1]} logits."
            )
        suppressed = torch.tensor(self.suppress_tokens, device=logits_BLV.device)
        return logits_BLV.index_fill(-1, suppressed, -torch.inf)

    def _predict(self, logits_BLV: torch.Tensor, active_B: list[bool]) -> torch.Tensor:
        """The argmax of `exp(logits) / (-log u)^T`, in log space, where it neither overflows nor underflows."""
        if self.temperature is not None:
            uniform_BLV = self.noise.draw(logits_BLV, active_B)
            logits_BLV = logits_BLV - self.temperature * torch.log(-torch.log(uniform_BLV))
        return logits_BLV.argmax(-1)


def select_positions(confidence_BL: torch.Tensor, masked_BL: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
    """The `counts_B[b]` masked positions of row b with the largest confidence, as a boolean `(B, L)`. Ties go to the
    lower index, so the choice does not depend on the device's sorting."""
    order_BL = confidence_BL.sort(dim=-1, descending=True, stable=True).indices
    rank_BL = torch.empty_like(order_BL)
    rank_BL.scatter_(-1, order_BL, torch.arange(order_BL.shape[-1], device=order_BL.device).expand_as(order_BL))
    return (rank_BL < counts_B[:, None]) & masked_BL


__all__ = [
    "CONFIDENCES",
    "SCHEDULES",
    "MaskedDiffusionSampler",
    "RowNoise",
    "select_positions",
    "transfer_counts",
    "transfer_table",
]
