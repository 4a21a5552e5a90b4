"""Weights that are lost: a NaN or an infinity in a tensor."""

from collections.abc import Iterable

import torch


def first_not_finite(tensors: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity; of a sharded one, this process's part is read."""
    for name, tensor in tensors:
        if isinstance(tensor, torch.distributed.tensor.DTensor):
            tensor = tensor.to_local()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return name
    return None
