"""Concepts that users trained with the public NeTI code: `mapper-steps-N.pt` with `learned_embeds-steps-N.bin`.

Both are pickles. The restricted unpickler builds tensors and plain containers, and of classes only the two encoders
below, as empty shells that hold data.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...utils.config.records import from_plain
from ...utils.errors import UserError, first_line, shown
from ...utils.files import parse_json_object
from ..backbone.frame import Frame
from ..conditioning.prompts import placeholder_problem
from ..methods import NeTI, NeTIConfig
from . import restricted_pickle
from .concept import Concept
from .tensors import fill, plain


class _PickledEncoder:
    """Stands in for the public code's encoder modules; their attributes arrive in `__dict__`."""


ENCODER_CLASSES = ("models.positional_encoding.NeTIPositionalEncoding", "models.positional_encoding.BasicEncoder")
PARAMETER_NAMES = {  # the public code's name -> ours; its net.0 is the input layer again
    "input_layer": "input_layer",
    "net.1": "hidden_layers.0",
    "net.2": "hidden_layers.1",
    "net.4": "hidden_layers.3",
    "net.5": "hidden_layers.4",
    "output_layer.0": "output_layer",
}


def load_reference_concept(mapper_path: str | Path, embeds_path: str | Path) -> Concept:
    """The concept of a checkpoint of the public code; `Concept.save` converts it to our format.

    Its norm rule is `joint`, as it was trained, or its images would change. Nothing in the files is ever executed.
    Raises UserError for a file that is missing or broken, or that asks for any other class, naming that class.
    """
    checkpoint = read_pickle(mapper_path)
    embeds = read_pickle(embeds_path)
    if not isinstance(checkpoint, dict) or not {"state_dict", "cfg", "encoder"} <= checkpoint.keys():
        raise UserError(f"{mapper_path}: not a mapper checkpoint of the public NeTI code (no state_dict, cfg, encoder)")
    try:
        [(placeholder, embedding)] = embeds.items()
        if problem := placeholder_problem(placeholder):
            raise ValueError(f"{shown(placeholder)} {problem}")
        embedding = plain("it", embedding)
    except (AttributeError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"{embeds_path}: must hold the embedding of exactly one placeholder ({reason})") from error
    try:
        return convert(checkpoint, placeholder, embedding)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"{mapper_path}: not a mapper checkpoint this version understands ({first_line(error)})"
        ) from error


def read_pickle(path: str | Path) -> Any:
    """A file of the public code, through the restricted unpickler; UserError if it asks for anything more."""
    shells = [(_PickledEncoder, name) for name in ENCODER_CLASSES]
    return restricted_pickle.read_pickle(path, "checkpoint of the public NeTI code", shells)


def convert(checkpoint: dict[str, Any], placeholder: str, embedding: Tensor) -> Concept:
    """The concept in an unpickled mapper checkpoint and its placeholder's embedding [D].

    Raises almost anything for a checkpoint of another shape.
    """
    settings: dict[str, Any] = checkpoint["cfg"]["model"]
    state: dict[str, Any] = checkpoint["state_dict"]
    encoder: dict[str, Any] = vars(checkpoint["encoder"])
    output_width = len(state["output_layer.0.bias"])

    config = from_plain(
        NeTIConfig,
        {
            "hidden_dim": len(state["net.1.bias"]),
            "use_positional_encoding": settings["use_positional_encoding"],
            "sigma_t": settings["pe_sigmas"]["sigma_t"],
            "sigma_l": settings["pe_sigmas"]["sigma_l"],
            "num_time_anchors": settings["num_pe_time_anchors"],
            "output_bypass": settings["output_bypass"],
            "use_nested_dropout": settings["use_nested_dropout"],
            "nested_dropout_prob": settings["nested_dropout_prob"],
            "normalize_output": settings["normalize_mapper_output"],
            "norm_rule": "joint",
            # the embedding keeps the super category's norm
            "target_norm": settings["target_norm"] or embedding.norm().item(),
        },
    )
    if config.use_positional_encoding:
        num_layers = len(state["input_layer.bias"]) // config.num_time_anchors
    else:
        num_layers = len(encoder["normalized_unet_layers"])
    text_width = output_width // 2 if config.output_bypass else output_width

    tensors = {
        f"mapper.{ours}.{kind}": state[f"{theirs}.{kind}"]
        for theirs, ours in PARAMETER_NAMES.items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in state
    }
    if config.use_positional_encoding:
        # w is in neither the state dict nor the config, only in the pickled encoder: as a plain attribute. A resume by
        # the public code makes it a parameter, and then it is in the state dict
        tensors["mapper.encoding.frequencies"] = state["encoder.w"] if "encoder.w" in state else encoder["w"]
    with torch.device("meta"):
        method = NeTI(config, Frame.of_sizes(num_layers, [text_width]))
    fill(method, tensors)
    category: Any = checkpoint["cfg"].get("data", {}).get("super_category_token", "")
    base_model: Any = settings["pretrained_model_name_or_path"]
    if not isinstance(category, str) or not isinstance(base_model, str):
        raise TypeError("its super category and its base model must be text")
    settings_of_run = parse_json_object(json.dumps(checkpoint["cfg"], default=str))
    return Concept(method.eval(), placeholder, category, {"base_model": base_model, "training_config": settings_of_run})
