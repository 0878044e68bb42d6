"""Nested dropout: orders the hidden units by importance, so that a concept can be cut short at inference.

NeTI, section 4.2. Pure functions; `kept` is always how many leading units stay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def truncate(hidden: Tensor, kept: int | Tensor) -> Tensor:
    """Set hidden[..., kept:] to zero. hidden [..., W]; kept: one number, or a tensor broadcastable to [...]."""
    unit = torch.arange(hidden.shape[-1], device=hidden.device)
    limit = torch.as_tensor(kept, device=hidden.device)[..., None]
    return torch.where(unit < limit, hidden, 0.0)


def draw_kept(
    num_layers: int,
    batch: int,
    width: int,
    probability: float,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
) -> Tensor:
    """How many of `width` units each layer and sample keeps in one training step, [L, B], on the generator's device.

    Each layer tosses one coin, shared by its samples, as in the public code, which calls the mapper once per layer.
    With `probability` every sample of that layer keeps k ~ U{0..width-1} units of its own; otherwise all keep `width`.
    Several generators are several calls side by side, each for a batch of `batch`: [L, generators * batch].
    """
    if isinstance(generator, Sequence):
        return torch.cat([draw_kept(num_layers, batch, width, probability, one) for one in generator], dim=1)
    device = generator.device if generator is not None else torch.device("cpu")
    dropped = torch.rand(num_layers, 1, generator=generator, device=device) < probability
    k = torch.randint(width, (num_layers, batch), generator=generator, device=device)
    return torch.where(dropped, k, width)
