"""The official ELITE weights, two pickles that do not say what they are, as an encoder's folder that does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ....utils.errors import UserError
from ...backbone.backbone import Backbone
from .files import ROLES, check_mapper, read_mapper, write_folder

OFFICIAL_WIDTH = 1024  # of CLIP ViT-L/14


def convert_official(
    paths: Mapping[str, Path | None], folder: Path, *, base_model: str, vision: str, half: bool
) -> None:
    """Write the mappers at `paths`, by role, as the new `folder`; half: in half precision.

    Only the base model's configs are read, and of the vision tower nothing. Raises UserError for a file that is no
    mapper for the base model, and for one file given in both roles: names and sizes do not tell them apart.
    """
    frame = Backbone.from_pretrained(base_model, components=()).frame
    states = {role: read_mapper(path, role) for role, path in paths.items() if path is not None}
    for role, state in states.items():
        first = state.get("mapping_0.0.weight")
        with torch.device("meta"):
            width = OFFICIAL_WIDTH if first is None else first.shape[-1]
            check_mapper(state, ROLES[role](frame.layers, width, frame.text_width), paths[role])
    if len(states) == 2 and all(
        torch.equal(tensor, states["local"][name]) for name, tensor in states["global"].items()
    ):
        raise UserError(f"{paths['global']} and {paths['local']} hold the same tensors; one of them is given twice")
    about = {"base_model": base_model, "vision": vision}
    write_folder(folder, states, about, None, torch.float16 if half else torch.float32)
