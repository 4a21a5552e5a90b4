"""The arithmetic of denoising: how many tokens a step fills, which tokens it predicts, which predictions it keeps, and
where an answer ends.

Shape suffixes: B batch, L block length, M positions of a block that a step predicts, V vocabulary, N denoising steps
of a block, X further axes.
"""

from collections.abc import Callable, Sequence

import torch
from transformers import GenerationConfig

# Monotone maps of [0, 1] onto itself; `None` is not a map, see `transfer_counts`. The logit-normal map is the
# distribution function of the standard logit-normal.
SCHEDULES: dict[str | None, Callable[[torch.Tensor, float], torch.Tensor] | None] = {
    None: None,
    "linear": lambda time, shift: time,
    "shift": lambda time, shift: shift * time / (1 + (shift - 1) * time),
    "cosine": lambda time, shift: (1 - torch.cos(torch.pi * time)) / 2,
    "logit_normal": lambda time, shift: torch.special.ndtr(torch.logit(time)),
}


def transfer_counts(num_masks: int, steps: int, schedule: str | None = None, shift: float = 3.0) -> list[int]:
    """How many of `num_masks` tokens each step fills, as LaViDa's generation does (arXiv:2505.16839).

    Without a schedule: evenly, the remainder to the first steps (LLaDA, arXiv:2502.09992); trailing steps may be 0.
    With a schedule f: the differences of `int(f(i / steps) * num_masks)`, at least 1 each, the surplus taken back one
    at a time from the entries above 1 in turn, and the whole reversed; at most `num_masks` steps. f is evaluated in
    float32 on the CPU: the truncation makes the counts depend on the precision.
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


# Confidence of predicted tokens from the probabilities at their positions, by `remasking`; a step keeps the largest.
# `margin` is the distance of the two largest probabilities, `None` a uniform draw.
CONFIDENCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None] = {
    "low_confidence": lambda probs_XV, tokens_X: probs_XV.gather(-1, tokens_X[:, None]).squeeze(-1),
    "entropy": lambda probs_XV, tokens_X: (probs_XV * torch.log(probs_XV + 1e-10)).sum(-1),
    "margin": lambda probs_XV, tokens_X: -probs_XV.topk(2, dim=-1).values.diff().squeeze(-1),
    "random": None,
}


class DenoisingStep:
    """A denoising step as a function of a response and its logits: predict, keep the most confident, end the answer.

    Low precision would bias the draw and the confidence: both are float64 (arXiv:2409.02908). With a list of
    generators, one per row, a row of a batch draws the numbers that it draws alone.
    """

    def __init__(self, config: GenerationConfig, generator: torch.Generator | list[torch.Generator] | None = None):
        self.config, self.generator = config, generator

    def __call__(
        self,
        response_BR: torch.LongTensor,
        positions_BM: torch.LongTensor,
        logits_BMV: torch.Tensor,
        counts_B: torch.LongTensor,
        num_masked: list[int],
    ) -> torch.LongTensor:
        """The response after the step.

        Args:
            positions_BM: positions of the logits; the first `num_masked[b]` of row b are masked.
            logits_BMV: overwritten.
            counts_B: how many positions of each row to fill, more where predictions reach `confidence_threshold`.
        """
        tokens_BM, confidence_BM = self.predict(logits_BMV, num_masked)
        counts_B = counts_B.to(response_BR.device)
        if self.config.confidence_threshold is not None:
            counts_B = counts_B.maximum((confidence_BM >= self.config.confidence_threshold).sum(-1))
        keep_BM = select_positions(confidence_BM, counts_B)
        tokens_BM = torch.where(keep_BM, tokens_BM, response_BR.gather(-1, positions_BM))
        response_BR = response_BR.scatter(-1, positions_BM, tokens_BM)
        return end_answers(response_BR, self.config.mask_token_id, self.config.end_ids)

    def predict(self, logits_BMV: torch.Tensor, num_masked: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and confidences, both `(B, M)`; the confidence is -inf after the first `num_masked[b]` of row b."""
        if logits_BMV.device.type == "mps":  # Apple's GPUs have no float64
            tokens_BM, confidence_BM = self.predict(logits_BMV.cpu(), num_masked)
            return tokens_BM.to(logits_BMV.device), confidence_BM.float().to(logits_BMV.device)
        logits_BMV[..., self.config.suppress_tokens] = -torch.inf
        drawn_BMV, temperature = logits_BMV, self.config.sampling_temperature
        if temperature is not None:
            # The argmax of exp(logits) / (-log u)^T in log space, where it neither overflows nor underflows.
            uniform_BMV = self._draw(logits_BMV.shape, num_masked, logits_BMV.device)
            drawn_BMV = logits_BMV.double() - temperature * torch.log(-torch.log(uniform_BMV))
        tokens_BM = drawn_BMV.max(-1).indices  # on CPUs faster than `argmax`
        confidence_BM = self._confidence(logits_BMV, tokens_BM, num_masked)
        counts_B1 = torch.tensor(num_masked, device=tokens_BM.device)[:, None]
        filled_BM = torch.arange(tokens_BM.shape[1], device=tokens_BM.device) >= counts_B1
        return tokens_BM, confidence_BM.masked_fill(filled_BM, -torch.inf)

    def _confidence(self, logits_BMV: torch.Tensor, tokens_BM: torch.Tensor, num_masked: list[int]) -> torch.Tensor:
        confidence = CONFIDENCES[self.config.remasking]
        if confidence is None:
            return self._draw(tokens_BM.shape, num_masked, tokens_BM.device)
        # As many logits in float64 at once as a CPU's caches hold.
        at_once = max((2**16 if logits_BMV.is_cpu else 2**24) // logits_BMV.shape[-1], 1)
        pieces = zip(logits_BMV.flatten(0, 1).split(at_once), tokens_BM.flatten().split(at_once), strict=True)
        parts = [confidence(logits_XV.softmax(-1, dtype=torch.float64), tokens_X) for logits_XV, tokens_X in pieces]
        return torch.cat(parts).view(tokens_BM.shape)

    def _draw(self, shape_BX: Sequence[int], num_masked: list[int], device: torch.device) -> torch.Tensor:
        """Uniform float64 numbers in [0, 1). With one generator per row they end after the first `num_masked[b]`."""
        if not isinstance(self.generator, list):
            home = device if self.generator is None else self.generator.device
            return torch.rand(shape_BX, generator=self.generator, dtype=torch.float64, device=home).to(device)
        draws_BX = torch.full(shape_BX, 0.5, dtype=torch.float64, device=device)
        for draws_X, generator, count in zip(draws_BX, self.generator, num_masked, strict=True):
            shape = (count, *shape_BX[2:])
            drawn_X = torch.rand(shape, generator=generator, dtype=torch.float64, device=generator.device)
            draws_X[:count] = drawn_X.to(device)
        return draws_BX


def masked_positions(masked_BL: torch.Tensor, most: int) -> torch.LongTensor:
    """The indices of each row's masked positions, ascending, `(B, most)`; a row with fewer goes on with others."""
    return masked_BL.int().argsort(dim=-1, descending=True, stable=True)[:, :most]


def select_positions(confidence_BM: torch.Tensor, counts_B: torch.Tensor) -> torch.Tensor:
    """The `counts_B[b]` positions of row b with the largest confidence, as a boolean `(B, M)`, but none of -inf. Ties
    go to the lower index."""
    order_BM = confidence_BM.sort(dim=-1, descending=True, stable=True).indices
    rank_BM = order_BM.argsort(dim=-1)
    return (rank_BM < counts_B[:, None]) & (confidence_BM != -torch.inf)


def end_answers(response_BR: torch.LongTensor, mask_token_id: int, end_ids: Sequence[int]) -> torch.LongTensor:
    """The response with `end_ids[0]` in place of masks, in rows where all masks come after an end-of-text."""
    if not end_ids:
        return response_BR
    masked_BR = response_BR == mask_token_id
    ended_BR = torch.isin(response_BR, torch.tensor(end_ids, device=response_BR.device)).cumsum(-1) > 0
    complete_B1 = ~(masked_BR & ~ended_BR).any(-1, keepdim=True)
    return response_BR.masked_fill(masked_BR & complete_B1, end_ids[0])
