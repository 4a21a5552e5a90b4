"""Which tensors received gradients: what a footprint promises, seen in the training loop itself."""

import torch
from torch import nn
from transformers import TrainerCallback

from modeling_shirg.training.footprints import trained_by_footprint

# LoRA's B and the coordinate embedding's last layer start at zero, so what lies before them has a zero gradient in
# the first step and another one in the second.
STEPS = 2


class GradientCheck(TrainerCallback):
    """Looks at every gradient just before the optimizer uses it.

    `found` has the largest absolute gradient of each step by the tensor's name, `expected` the footprint's names.
    """

    def __init__(self):
        self.found: dict[str, list[float]] = {}
        self.expected: set[str] = set()

    def on_pre_optimizer_step(self, args, state, control, model: nn.Module = None, **kwargs):
        self.expected = trained_by_footprint(model)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self.found.setdefault(name, []).append(_largest(parameter.grad))

    def report(self) -> str:
        """One line per tensor that received a gradient."""
        lines = []
        for name, largest in self.found.items():
            values = "  ".join(f"{value:9.2e}" for value in largest)
            lines.append(f"  {'trained' if name in self.expected else 'OUTSIDE'}  {values}  {name}")
        return "\n".join([*lines, f"{len(lines)} tensors received gradients."])

    def verify(self) -> None:
        """Raises a `ValueError` if a tensor outside the footprint received a gradient, or one inside received none."""
        outside = [name for name in self.found if name not in self.expected]
        if outside:
            raise ValueError(
                f"{len(outside)} tensors outside the footprint received gradients: {', '.join(outside[:5])}"
            )
        silent = [name for name in sorted(self.expected) if not any(self.found.get(name, ()))]
        if silent:
            raise ValueError(
                f"{len(silent)} tensors of the footprint received no gradient, or only zeros: {', '.join(silent[:5])}."
                " The loss does not depend on them under this preset: choose another footprint."
            )


def _largest(gradient: torch.Tensor) -> float:
    """The largest absolute value; of a sharded gradient, on all devices."""
    if isinstance(gradient, torch.distributed.tensor.DTensor):
        gradient = gradient.full_tensor()
    return float(gradient.abs().max())
