"""The arithmetic of a denoising step: how many tokens it fills, what it predicts, and which predictions it keeps.

Pure functions and small classes on plain tensors; they know neither the model nor its generation config.

Shape suffixes: B batch, L block length, M positions of a block that a step predicts, V vocabulary, N denoising steps
of a block, X further axes.
"""

from collections.abc import Callable, Iterator, Sequence

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
def _at_once(logits: torch.Tensor) -> int:
    """How many logits are in float64 at once: on a CPU as many as stay in its caches."""
    return 2**16 if logits.is_cpu else 2**24


def _probabilities(logits_XV: torch.Tensor) -> Iterator[torch.Tensor]:
    """In float64, a few positions at a time."""
    for some_XV in logits_XV.split(max(_at_once(logits_XV) // logits_XV.shape[-1], 1)):
        yield some_XV.softmax(-1, dtype=torch.float64)


def _top_confidence(logits_XV: torch.Tensor, tokens_X: torch.Tensor) -> torch.Tensor:
    """Probability of the predicted token; the sum over the vocabulary is taken a slice at a time."""
    largest_X1 = logits_XV.amax(-1, keepdim=True).double()
    slices = logits_XV.split(max(_at_once(logits_XV) // logits_XV.shape[0], 1), dim=-1)
    total_X = sum(each.to(torch.float64, copy=True).sub_(largest_X1).exp_().sum(-1) for each in slices)
    return (logits_XV.gather(-1, tokens_X[..., None]) - largest_X1).squeeze(-1).exp() / total_X


def _negative_entropy(logits_XV: torch.Tensor, tokens_X: torch.Tensor) -> torch.Tensor:
    return torch.cat([(each * torch.log(each + 1e-10)).sum(-1) for each in _probabilities(logits_XV)])


def _margin(logits_XV: torch.Tensor, tokens_X: torch.Tensor) -> torch.Tensor:
    """Distance of the two largest probabilities."""
    top_X2 = torch.cat([each.topk(2, dim=-1).values for each in _probabilities(logits_XV)])
    return top_X2[:, 0] - top_X2[:, 1]


# The confidence of predictions, in float64, by `remasking`; a step keeps the largest. `None` is a uniform draw.
CONFIDENCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None] = {
    "low_confidence": _top_confidence,
    "entropy": _negative_entropy,
    "margin": _margin,
    "random": None,
}


class RowNoise:
    """Uniform float64 draws for the masked positions of every row, one row after the other.

    With one generator per row, a row draws what it draws alone. A single generator, or torch's default one, is shared
    by all rows.

    Raises:
        ValueError: not a generator, or not one per row.
    """

    def __init__(
        self, generator: torch.Generator | list[torch.Generator] | None, batch_size: int, device: torch.device
    ):
        self.home = torch.device("cpu") if device.type == "mps" else device
        self.streams = generator if isinstance(generator, (list, tuple)) else [generator] * batch_size
        if not all(isinstance(stream, torch.Generator | None) for stream in self.streams):
            raise ValueError(f"generator must be a torch.Generator or one for each row, got {generator!r:.100}.")
        if len(self.streams) != batch_size:
            raise ValueError(f"Got {len(self.streams)} generators for a batch of {batch_size}: give one per row.")

    def draw(self, shape_BX: Sequence[int], num_masked: list[int], device: torch.device) -> torch.Tensor:
        """Draws in [0, 1) in float64 for the first `num_masked[b]` entries of row b; the others are 0.5."""
        draws_BX = torch.full(tuple(shape_BX), 0.5, dtype=torch.float64, device=device)
        for row, (stream, count) in enumerate(zip(self.streams, num_masked, strict=True)):
            if count:
                shape = (count, *shape_BX[2:])
                home = self.home if stream is None else stream.device
                drawn = torch.rand(shape, generator=stream, dtype=torch.float64, device=home)
                draws_BX[row, :count] = drawn.to(device)
        return draws_BX


class MaskedDiffusionSampler:
    """One prediction and its confidence per masked position. What low precision would bias, the Gumbel draw and the
    confidence, is float64 (arXiv:2409.02908), a few positions at a time.

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

    def __call__(self, logits_BMV: torch.Tensor, num_masked: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and confidences, both `(B, M)`, of positions as `masked_positions` orders them: the first
        `num_masked[b]` of row b are masked. The confidence of the others is -inf. The logits are written to."""
        if logits_BMV.device.type == "mps":  # Apple's GPUs have no float64
            tokens_BM, confidence_BM = self(logits_BMV.cpu(), num_masked)
            return tokens_BM.to(logits_BMV.device), confidence_BM.float().to(logits_BMV.device)
        self._suppress(logits_BMV)
        tokens_BM = self._predict(logits_BMV, num_masked)
        if self.confidence is None:
            confidence_BM = self.noise.draw(tokens_BM.shape, num_masked, tokens_BM.device)
        else:
            confidence_BM = self.confidence(logits_BMV.flatten(0, 1), tokens_BM.flatten()).view(tokens_BM.shape)
        if min(num_masked) < tokens_BM.shape[1]:
            counts_B1 = torch.tensor(num_masked, device=tokens_BM.device)[:, None]
            filled_BM = torch.arange(tokens_BM.shape[1], device=tokens_BM.device) >= counts_B1
            confidence_BM = confidence_BM.masked_fill(filled_BM, -torch.inf)
        return tokens_BM, confidence_BM

    def _suppress(self, logits_BMV: torch.Tensor) -> None:
        if not self.suppress_tokens:
            return
        if max(self.suppress_tokens) >= logits_BMV.shape[-1]:
            raise ValueError(
                f"suppress_tokens holds id {max(self.suppress_tokens)}, the model has {logits_BMV.shape[-1]} logits."
            )
        for token in self.suppress_tokens:
            logits_BMV[..., token] = -torch.inf

    def _predict(self, logits_BMV: torch.Tensor, num_masked: list[int]) -> torch.Tensor:
        """The argmax of `exp(logits) / (-log u)^T`, in log space, where it neither overflows nor underflows."""
        if self.temperature is not None:
            uniform_BMV = self.noise.draw(logits_BMV.shape, num_masked, logits_BMV.device)
            logits_BMV = logits_BMV.double() - self.temperature * torch.log(-torch.log(uniform_BMV))
        return logits_BMV.max(-1).indices  # on CPUs faster than `argmax`


def masked_positions(masked_BL: torch.Tensor, most: int) -> torch.LongTensor:
    """The indices of each row's masked positions, ascending, `(B, most)`; a row that has fewer goes on with others.

    `most` is the largest number of masked positions in a row, which the caller knows without asking the device.
    """
    return masked_BL.int().argsort(dim=-1, descending=True, stable=True)[:, :most]


def select_positions(confidence_BM: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
    """The `counts_B[b]` positions of row b with the largest confidence, as a boolean `(B, M)`, but none of -inf. Ties
    go to the lower index, so the choice does not depend on the device's sorting."""
    order_BM = confidence_BM.sort(dim=-1, descending=True, stable=True).indices
    rank_BM = torch.empty_like(order_BM)
    rank_BM.scatter_(-1, order_BM, torch.arange(order_BM.shape[-1], device=order_BM.device).expand_as(order_BM))
    return (rank_BM < counts_B[:, None]) & (confidence_BM != -torch.inf)


def confident_counts(confidence_BM: torch.Tensor, threshold: float) -> torch.LongTensor:
    """How many of each row's predictions have at least the probability `threshold`, `(B,)` (arXiv:2505.22618)."""
    return (confidence_BM >= threshold).sum(-1)


def end_answers(response_BR: torch.LongTensor, mask_token_id: int, end_ids: list[int]) -> torch.LongTensor:
    """The response with `end_ids[0]` in place of masks, in rows where all masks come after an end-of-text."""
    masked_BR = response_BR == mask_token_id
    ended_BR = torch.isin(response_BR, torch.tensor(end_ids, device=response_BR.device)).cumsum(-1) > 0
    complete_B1 = ~(masked_BR & ~ended_BR).any(-1, keepdim=True)
    return response_BR.masked_fill(masked_BR & complete_B1, end_ids[0])


__all__ = [
    "CONFIDENCES",
    "SCHEDULES",
    "MaskedDiffusionSampler",
    "RowNoise",
    "confident_counts",
    "end_answers",
    "masked_positions",
    "select_positions",
    "transfer_counts",
    "transfer_table",
]
