"""Tensors from files of this project and of others: what a damaged or hostile file could pass off as one is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ...utils.errors import UserError, first_line


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` file, on the CPU. UserError if it is broken."""
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise UserError(f"{path}: not a complete .safetensors file ({first_line(error)}); take another copy") from error


def plain(name: str, value: Any) -> Tensor:
    """`value` as an ordinary tensor of finite float32 numbers. ValueError, naming it, for anything else.

    A pickle can describe tensors without memory of their own: sparse, on the "meta" device, or one number repeated 2^60
    times. These are no weights, and looking at their numbers may take all memory.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError(f"{name} is no tensor of numbers")
    if value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        raise ValueError(f"{name} is no ordinary tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"{name} has more numbers than the file")
    tensor = value.detach().float()
    if not tensor.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite numbers")
    return tensor


def fill(module: nn.Module, tensors: Mapping[str, Any]) -> None:
    """Make the tensors the state of a module that was built on the "meta" device. ValueError as `state_of`."""
    module.load_state_dict(state_of(module, tensors), assign=True)


def state_of(module: nn.Module, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, in float32, as the module's state.

    ValueError, one line, for one that is missing, unknown, of another shape, or not `plain`.
    """
    wanted = {name: tensor.shape for name, tensor in module.state_dict().items()}
    if different := sorted(wanted.keys() ^ tensors.keys()):
        raise ValueError(f"{different[0]} is {'missing' if different[0] in wanted else 'unknown'}")
    state = {name: plain(name, tensor) for name, tensor in tensors.items()}
    for name, shape in wanted.items():
        if state[name].shape != shape:
            raise ValueError(f"{name} has the shape {list(state[name].shape)}, not {list(shape)}")
    return state
