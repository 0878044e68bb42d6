"""Small tensors to the device, without making the host wait for the work queued there."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`. On CUDA an ordinary copy waits for all queued work; one from pinned memory joins the queue.

    For numbers drawn or looked up on the CPU at every step. A training step that uses nothing else never waits.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
