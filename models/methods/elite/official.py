"""The official ELITE weights, two pickles that do not say what they are, as one file that does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ....utils.errors import UserError
from ...backbone.backbone import Backbone
from .files import ROLES, check_mapper, read_official, write_encoder

OFFICIAL_WIDTH = 1024  # of CLIP ViT-L/14


def convert_official(paths: Mapping[str, Path], output: Path, *, base_model: str, vision: str, half: bool) -> None:
    """Write the mappers at `paths`, by role, as one file; half: in half precision.

    Only the base model's configs are read, and of the vision tower nothing. Raises UserError for a file that is no
    mapper for the base model, and for one file given in both roles: names and sizes do not tell them apart.
    """
    frame = Backbone.from_pretrained(base_model, components=()).frame
    states = {role: read_official(path, role) for role, path in paths.items()}
    for role, state in states.items():
        first = state.get("mapping_0.0.weight")
        width = OFFICIAL_WIDTH if first is None else first.shape[-1]
        with torch.device("meta"):
            mapper = ROLES[role](frame.layers, width, frame.text_width)
        check_mapper(state, mapper, str(paths[role]))
    if len(states) == 2 and all(torch.equal(t, states["local"][name]) for name, t in states["global"].items()):
        raise UserError(f"{paths['global']} and {paths['local']} hold the same tensors; one of them is given twice")
    about = {"base_model": base_model, "tower": vision}
    write_encoder(output, states, about, torch.float16 if half else torch.float32)
