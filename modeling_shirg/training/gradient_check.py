"""Which tensors received gradients: what a footprint promises, seen in the training loop itself."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import TrainerCallback

from modeling_shirg.training.footprints import trained_by_footprint

# LoRA's B and the coordinate embedding's last layer start at zero, so what lies before them has a zero gradient in
# the first step and another one in the second.
STEPS = 2


@dataclass
class TensorGradient:
    """What one tensor received: the largest absolute gradient of each step, and whether the footprint has it."""

    name: str
    in_footprint: bool
    largest: list[float]

    def __str__(self) -> str:
        values = "  ".join(f"{value:9.2e}" for value in self.largest)
        return f"  {'trained' if self.in_footprint else 'OUTSIDE'}  {values}  {self.name}"


class GradientCheck(TrainerCallback):
    """Looks at every gradient just before the optimizer uses it."""

    def __init__(self):
        self.found: dict[str, TensorGradient] = {}
        self.expected: set[str] = set()

    def on_pre_optimizer_step(self, args, state, control, model: nn.Module = None, **kwargs):
        self.expected = trained_by_footprint(model)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                entry = self.found.setdefault(name, TensorGradient(name, name in self.expected, []))
                entry.largest.append(_largest(parameter.grad))

    def report(self) -> str:
        """One line per tensor that received a gradient."""
        lines = [str(entry) for entry in self.found.values()]
        return "\n".join([*lines, f"{len(lines)} tensors received gradients."])

    def verify(self) -> None:
        """Raises a `ValueError` that names the first tensors outside the footprint that received a gradient, or
        inside it that received none.
        """
        outside = [name for name, entry in self.found.items() if not entry.in_footprint]
        if outside:
            raise ValueError(f"{len(outside)} tensors outside the footprint received gradients: {_some(outside)}.")
        silent = [name for name in sorted(self.expected) if not self._received(name)]
        if silent:
            raise ValueError(
                f"{len(silent)} tensors of the footprint received no gradient, or only zeros: {_some(silent)}. The "
                "loss does not depend on them under this preset."
            )

    def _received(self, name: str) -> bool:
        return name in self.found and any(self.found[name].largest)


def _largest(gradient: torch.Tensor) -> float:
    """The largest absolute value; of a sharded gradient, on all devices."""
    if isinstance(gradient, torch.distributed.tensor.DTensor):
        gradient = gradient.full_tensor()
    return float(gradient.abs().max())


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
