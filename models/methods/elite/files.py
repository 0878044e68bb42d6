"""An encoder on disk: a folder of `encoder.json`, the mappers' tensors and, if its own, the vision tower.

```
encoder.json                 base model, vision tower and the layers of it that are read
vision/                      the tower in transformers layout, unless it is one of the hub's
global_mapper.safetensors    132 tensors by their official names
local_mapper.safetensors     132 more, by the SAME names: never put both into one file
```
The official files are `global_mapper.pt` and `local_mapper.pt`; they may lie in the folder instead.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ....utils.errors import UserError
from ...backbone.frame import Frame
from ...concepts.restricted_pickle import read_pickle
from .encoder import Encoder, matrices_digest
from .mappers import GlobalMapper, LayerMatrices, LocalMapper, Mapper
from .vision import VisionFeatures, load_vision

BUNDLED = {"miniature": Path(__file__).parents[2] / "miniature" / "elite"}
OFFICIAL_VISION = "openai/clip-vit-large-patch14"
CONFIG, VISION = "encoder.json", "vision"
ROLES: dict[str, type[Mapper]] = {"global": GlobalMapper, "local": LocalMapper}


def save_encoder(encoder: Encoder, folder: Path, *, base_model: str, dtype: torch.dtype = torch.float32) -> None:
    """Write an encoder as a folder that `load_encoder` reads; a folder already there is replaced at the very end."""
    parts = {"global": encoder.of_words, "local": encoder.of_patches}
    states = {role: mapper.state_dict() for role, mapper in parts.items() if mapper is not None}
    layers = list(encoder.vision.layers)
    about = {"base_model": base_model, "vision": encoder.tower or VISION, "feature_layers": layers}
    write_folder(folder, states, about, None if encoder.tower else encoder.vision, dtype)


def write_folder(
    folder: Path,
    states: Mapping[str, Mapping[str, Tensor]],
    about: Mapping[str, Any],
    vision: VisionFeatures | None,
    dtype: torch.dtype,
) -> None:
    """Write mappers by role, `encoder.json` and a tower. UserError where the place cannot be written to."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for role, state in states.items():
            save_mapper(state, temporary / f"{role}_mapper.safetensors", role, dtype)
        if vision is not None:
            save_vision(vision, temporary / VISION, dtype)
        (temporary / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {error}; free the place or choose another") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_mapper(state: Mapping[str, Tensor], path: Path, role: str, dtype: torch.dtype) -> None:
    """One mapper's tensors, with its role in the metadata: the names alone do not tell the two apart."""
    tensors = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(tensors, path, metadata={"role": role})


def save_vision(vision: VisionFeatures, folder: Path, dtype: torch.dtype) -> None:
    """The tower in transformers layout, with its pixel statistics where a CLIPImageProcessor looks for them."""
    tower: Any = vision.tower
    state = {name: tensor.to(dtype) for name, tensor in tower.state_dict().items()}
    tower.save_pretrained(folder, state_dict=state)
    statistics = {"image_mean": vision.mean.flatten().tolist(), "image_std": vision.std.flatten().tolist()}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics, indent=1) + "\n", encoding="utf-8")


def encoder_folder(name_or_path: str) -> Path:
    """The folder of an encoder: a bundled one ("miniature") or a path. UserError if it is not there."""
    folder = BUNDLED.get(name_or_path, Path(name_or_path).expanduser())
    if not name_or_path or not folder.is_dir():
        raise UserError(
            f"encoder {name_or_path!r}: no such folder; give the folder of an ELITE encoder, or {', '.join(BUNDLED)}"
        )
    return folder


def load_encoder(name_or_path: str | Path, frame: Frame, vision: str | None = None) -> Encoder:
    """An encoder by folder or bundled name, float32, frozen; `vision`: the tower of a folder without `encoder.json`.

    Raises UserError for a folder that is no encoder, and for mappers of another base model.
    """
    folder = encoder_folder(str(name_or_path))
    about = read_about(folder)
    tower = str(about.get("vision", vision or OFFICIAL_VISION))
    if find_mapper(folder, "global") is None:  # before the tower is fetched
        raise UserError(f"{folder}: no encoder (global_mapper.safetensors or global_mapper.pt is needed)")
    seen = load_vision(folder / VISION if tower == VISION else tower, about.get("feature_layers"))
    mappers: dict[str, Any] = {"global": None, "local": None}
    for role, mapper_class in ROLES.items():
        if (path := find_mapper(folder, role)) is not None:
            with torch.device("meta"):  # nothing is drawn: the file's tensors become the parameters
                mapper = mapper_class(frame.layers, seen.width, frame.text_width)
            state = read_mapper(path, role)
            check_mapper(state, mapper, path)
            mapper.load_state_dict(state, assign=True)
            mappers[role] = mapper.requires_grad_(False).eval()
    own = tower == VISION or Path(tower).is_dir()
    return Encoder(seen, mappers["global"], mappers["local"], str(name_or_path), "" if own else tower)


@functools.lru_cache(maxsize=4)  # the concepts of one encoder share its matrices
def find_matrices(folder: Path, frame: Frame, role: str, digest: str) -> LayerMatrices:
    """What drawing needs of one mapper of the encoder in a folder.

    Raises UserError if it is not there, or is another one than that of `digest`.
    """
    path = find_mapper(folder, role)
    if path is None:
        raise UserError(f"{folder}: no {role}_mapper.safetensors or .pt, which the concept was encoded with")
    with torch.device("meta"):
        matrices = LayerMatrices(frame.layers, frame.text_width)
    state = {name: tensor for name, tensor in read_mapper(path, role).items() if not name.startswith("mapping_")}
    check_mapper(state, matrices, path)
    matrices.load_state_dict(state, assign=True)
    if matrices_digest(matrices) != digest:
        raise UserError(
            f"{folder}: another encoder than the one that the concept was encoded with ({role} {digest[:15]}); give "
            "that one, or encode the picture again"
        )
    return matrices.requires_grad_(False)


def read_about(folder: Path) -> dict[str, Any]:
    """What `encoder.json` says; nothing, if there is none."""
    path = folder / CONFIG
    try:
        about = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); take another copy") from error
    if not isinstance(about, dict):
        raise UserError(f"{path}: holds no mapping; take another copy")
    return about


def find_mapper(folder: Path, role: str) -> Path | None:
    """The file of one mapper in an encoder's folder, None if there is none."""
    paths = [folder / f"{role}_mapper{suffix}" for suffix in (".safetensors", ".pt")]
    return next((path for path in paths if path.is_file()), None)


def read_mapper(path: Path, role: str) -> dict[str, Tensor]:
    """The tensors of one mapper in float32, from a `.safetensors` file or an official `.pt`; nothing is executed.

    role: "global" or "local", which the tensors' names do not tell. UserError for a file that is missing or broken, or
    that says it has the other role: by its metadata, or by its name.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; the {role} mapper of an ELITE encoder is needed")
    said = next((other for other in ROLES if other != role and other in path.stem), None)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                said = (file.metadata() or {}).get("role", said or role)
            state = safetensors.torch.load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a complete .safetensors file ({error}); take another copy") from error
    else:
        state = read_pickle(path, f"the {role} mapper of an ELITE encoder")
    if said not in (None, role):
        raise UserError(f"{path}: this is the {said} mapper, and the {role} one is needed; the two have been swapped")
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: holds no tensors by name; the {role} mapper of an ELITE encoder is needed")
    return {name: tensor.float() for name, tensor in state.items()}


def check_mapper(state: Mapping[str, Tensor], mapper: LayerMatrices, path: Path | None) -> None:
    """Raise UserError unless `state` has exactly the tensors of `mapper`, saying what it was made for instead."""
    wanted = mapper.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        example = f"{missing[0]} is missing" if missing else f"{unknown[0]} is not one of them"
        raise UserError(
            f"{path}: not a whole mapper for this model: {len(wanted.keys() & state.keys())} of the {len(wanted)} "
            f"tensors are there, {len(unknown)} others ({example}); take another copy, or the model it was trained for"
        )
    wrong = [name for name, tensor in wanted.items() if state[name].shape != tensor.shape]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{path}: made for another model: {len(wrong)} tensors have other sizes, such as {name} with "
            f"{tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}, and this model's text width is "
            f"{mapper.text_width}; the official encoder is for Stable Diffusion 1.x (768) with CLIP ViT-L/14"
        )
