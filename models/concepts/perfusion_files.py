"""Concepts and covariances of the unofficial implementations of Perfusion, of which none is safetensors.

    lucidrains/perfusion-pytorch, `.pt`           {"embed_params": [1, D], "key_value_params": [[i*, o*], ...], "C_inv"}
    the same, `covariance_CLIP_ViT-L-14.pt`       C [D, D]
    ChenDarYen's, `.ckpt`                         {"target_output": {layer: [T, width]}, "target_input", ...}: refused,
                                                  its targets are tied to the places of the prompt's tokens
    the same, `C_inv.npy`, `C_inv_openclip.npy`   C^-1 [D, D]

Pickles go through the restricted unpickler, arrays are read without pickle. None of the files says which model it
belongs to. What in a concept of the first kind was trained is its author's affair: that code never optimised o*_V.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.errors import UserError, first_line
from ...utils.files import require_file
from ..attention.layers import Layer
from ..backbone.backbone import Backbone
from ..conditioning.tokens import check_placeholder
from ..methods import Perfusion
from ..methods.perfusion.config import PerfusionConfig
from ..methods.perfusion.covariance import Covariance, probe
from .concept import Concept
from .restricted_pickle import read_pickle
from .tensors import fill, plain

BY_POSITION = (
    "a checkpoint of ChenDarYen's Perfusion code, whose values are tied to the positions of the tokens in a prompt; a "
    "concept has one for all positions, so it cannot become one: train it from its photos"
)


def is_perfusion(content: Any) -> bool:
    """Whether an unpickled file is a concept of one of the unofficial implementations."""
    keys = set(content) if isinstance(content, Mapping) else set()
    return {"target_output", "C_inv"} <= keys or {"embed_params", "key_value_params"} <= keys


def convert_perfusion(
    content: Mapping[str, Any], backbone: Backbone, placeholder: str, super_category: str
) -> tuple[Concept, Covariance]:
    """The concept in an unpickled file, and the covariance that it needs beside it.

    backbone: the model it was trained on, of which the text encoder's weights are needed.
    Raises ValueError or UserError, one line, for a file that cannot be one concept of this model.
    """
    check_placeholder(backbone.tokenizer, placeholder)
    layers, pairs = backbone.frame.layers, content["key_value_params"]
    words = plain("embed_params", content["embed_params"])
    if words.ndim != 2 or len(words) != 1:
        raise ValueError(f"embed_params has the shape {list(words.shape)}; a file of one concept, [1, D], is converted")
    if not isinstance(pairs, Sequence) or len(pairs) != 2 * len(layers):
        raise ValueError(f"key_value_params must hold {2 * len(layers)} pairs, keys and values of {len(layers)} layers")
    keys = [plain("i*", key).reshape(-1) for key, _ in pairs]
    targets = [plain("o*", target).reshape(-1) for _, target in pairs]
    if any(not torch.equal(key, keys[0]) for key in keys):
        raise ValueError("its layers have different keys i*; a concept has one")
    order = _order(layers, [len(target) for target in targets])
    inverse = plain("C_inv", content["C_inv"]).double()
    covariance = covariance_of(torch.linalg.inv(inverse), backbone)
    config = PerfusionConfig(super_category=super_category, covariance_digest=covariance.digest)
    with torch.device("meta"):
        method = Perfusion(config, backbone.frame)
    fill(
        method,
        {
            "word": words[0],
            "key": keys[0],
            "key_targets": torch.cat([targets[2 * place] for place in order]),
            "value_targets": torch.cat([targets[2 * place + 1] for place in order]),
        },
    )
    return Concept(method.eval(), placeholder, super_category, {"base_model": backbone.name}), covariance


def read_covariance(path: Path, backbone: Backbone) -> Covariance:
    """C from a file of an unofficial implementation: a tensor C (`.pt`), or an array C^-1 (`.npy`).

    UserError for a file that is missing, broken, of another width, or no symmetric positive matrix.
    """
    require_file(path, "covariance file")
    try:
        if path.suffix == ".npy":
            matrix = torch.linalg.inv(torch.from_numpy(np.load(path, allow_pickle=False)).double())
        else:
            matrix = plain("the covariance", read_pickle(path, "covariance file"))
        covariance = covariance_of(matrix, backbone)
        _ = covariance.inverse
        return covariance
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    except (ValueError, TypeError, RuntimeError, OSError, EOFError) as error:
        raise UserError(f"{path}: not a covariance file that can be read ({first_line(error)})") from None


def covariance_of(matrix: Tensor, backbone: Backbone) -> Covariance:
    """A matrix [D, D] as the covariance of a model's text encoder. ValueError unless it can be one."""
    width = backbone.frame.text_width
    if matrix.shape != (width, width):
        raise ValueError(f"the covariance has the shape {list(matrix.shape)}, {backbone.name} has width {width}")
    if not matrix.isfinite().all() or (matrix - matrix.T).abs().max() > 1e-3 * matrix.abs().max():
        raise ValueError("the covariance is not symmetric and finite")
    return Covariance(((matrix + matrix.T) / 2).float(), probe(backbone.text), {"model": backbone.name})


def _order(layers: Sequence[Layer], widths: Sequence[int]) -> list[int]:
    """For each layer its place in the file, by the widths [2L] of the file's targets, key before value.

    The modules of an LDM U-Net are listed as they are executed, those of diffusers' down, up, middle.
    """
    executed = list(range(len(layers)))
    listed = sorted(executed, key=lambda index: layers[index].path.startswith("mid_block"))
    for order in (executed, [listed.index(index) for index in executed]):
        found = [list(widths[2 * place : 2 * place + 2]) for place in order]
        if found == [[layer.width] * 2 for layer in layers]:
            return order
    raise ValueError("the widths of its targets are not those of this model's layers")
