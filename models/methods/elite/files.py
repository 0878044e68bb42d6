"""An encoder on disk: ours, one `.safetensors` file, and the official one, a folder of two pickles.

Ours holds the tensors `global.*` and `local.*`, each by the official names, and `vision.*` if the vision tower is its
own and not one of the hub's; the rest is JSON metadata. The official `global_mapper.pt` and `local_mapper.pt` have the
SAME 132 names, and nothing in them tells which is which.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from ....utils.errors import UserError, first_line
from ....utils.files import write_atomically
from ...backbone.frame import Frame
from ...concepts.restricted_pickle import read_pickle
from .encoder import Encoder, matrices_digest
from .mappers import GlobalMapper, LayerMatrices, LocalMapper, Mapper
from .vision import VisionFeatures, load_vision

FORMAT_VERSION = 1
METADATA_KEY = "neti_elite"
BUNDLED = {"miniature": Path(__file__).parents[2] / "miniature" / "elite" / "encoder.safetensors"}
OFFICIAL_VISION = "openai/clip-vit-large-patch14"
ROLES: dict[str, type[Mapper]] = {"global": GlobalMapper, "local": LocalMapper}


def save_encoder(encoder: Encoder, path: Path, *, base_model: str, dtype: torch.dtype = torch.float32) -> None:
    """Write an encoder as one file, atomically; the vision tower too, unless it is one of the hub's."""
    vision: Any = encoder.vision
    parts: dict[str, Any] = {"global": encoder.of_words, "local": encoder.of_patches}
    about: dict[str, Any] = {
        "base_model": base_model,
        "tower": encoder.tower,
        "feature_layers": list(vision.layers),
    }
    if not encoder.tower:
        parts["vision"] = vision.tower
        about["vision_config"] = vision.tower.config.to_dict()
        about |= {"image_mean": vision.mean.flatten().tolist(), "image_std": vision.std.flatten().tolist()}
    states = {role: part.state_dict() for role, part in parts.items() if part is not None}
    write_encoder(path, states, about, dtype)


def write_encoder(
    path: Path, states: Mapping[str, Mapping[str, Tensor]], about: Mapping[str, Any], dtype: torch.dtype
) -> None:
    """Write tensors by role and name, and metadata about them. UserError if the place cannot be written to."""
    tensors = {
        f"{role}.{name}": tensor.detach().cpu().to(dtype).contiguous()
        for role, state in states.items()
        for name, tensor in state.items()
    }
    header = json.dumps({"format_version": FORMAT_VERSION, **about}, sort_keys=True)
    content = safetensors.torch.save(tensors, metadata={METADATA_KEY: header})
    write_atomically(path, lambda file: file.write(content))


def find_encoder(name_or_path: str | Path, concept_folder: Path | None = None) -> Path:
    """Our file, or the folder of official ones: by bundled name ("miniature") or path. UserError if there is none.

    concept_folder: where the concept lies that names it; a concept file keeps no path but the last name.
    """
    name = str(name_or_path)
    path = BUNDLED.get(name, Path(name).expanduser())
    if concept_folder is not None and not path.exists():
        path = concept_folder / path.name
    if concept_folder is not None and not path.exists():
        raise UserError(
            f"encoder {name!r}: is neither here nor beside the concept that it encoded; say where it is by --encoder"
        )
    if not name or not path.exists():
        raise UserError(
            f"encoder {name!r}: no such file; give one that scripts/train_elite.py wrote, the folder of the official "
            f"global_mapper.pt, or {', '.join(BUNDLED)}"
        )
    if path.is_dir() and not (path / "global_mapper.pt").is_file():
        raise UserError(f"encoder {path}: the folder holds no global_mapper.pt; give one that does, or a file")
    return path


def read_about(path: Path) -> dict[str, Any]:
    """What our file says about itself; {} for a folder of official ones. UserError for any other file."""
    if path.is_dir():
        return {}
    with _opened(path) as file:
        header = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
    if not isinstance(header, dict) or header.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path}: not an ELITE encoder of this version; give a file that scripts/train_elite.py wrote")
    return header


def load_encoder(name_or_path: str | Path, frame: Frame, vision: str | None = None) -> Encoder:
    """An encoder by file, folder or bundled name, in float32 and frozen; `vision`: the tower of official files.

    Raises UserError for a file that is none, and for mappers of another base model.
    """
    path = find_encoder(name_or_path)
    about = read_about(path)
    tower = about.get("tower", vision or OFFICIAL_VISION)
    seen = load_vision(tower, about.get("feature_layers")) if tower else _own_vision(path, about)
    mappers: dict[str, Any] = {}
    for role, mapper_class in ROLES.items():
        if state := read_role(path, role):
            with torch.device("meta"):  # nothing is drawn: the file's tensors become the parameters
                mapper = mapper_class(frame.layers, seen.width, frame.text_width)
            check_mapper(state, mapper, f"{path} ({role} mapper)")
            mapper.load_state_dict(state, assign=True)
            mappers[role] = mapper.requires_grad_(False).eval()
    if "global" not in mappers:
        raise UserError(f"{path}: the encoder has no global mapper; take another copy")
    of_hub = "" if not tower or Path(tower).is_dir() else tower
    return Encoder(seen, mappers["global"], mappers.get("local"), str(name_or_path), of_hub)


@functools.lru_cache(maxsize=4)  # the concepts of one encoder share its matrices
def find_matrices(path: Path, frame: Frame, role: str, digest: str) -> LayerMatrices:
    """What drawing needs of one mapper of an encoder; nothing else is read.

    Raises UserError if it is not there, or is another one than that of `digest`.
    """
    with torch.device("meta"):
        matrices = LayerMatrices(frame.layers, frame.text_width)
    state = read_role(path, role, matrices_only=True)
    check_mapper(state, matrices, f"{path} ({role} mapper)")
    matrices.load_state_dict(state, assign=True)
    if matrices_digest(matrices) != digest:
        raise UserError(
            f"{path}: another encoder than the one that the concept was encoded with ({role} {digest[:15]}); give "
            "that one, or encode the picture again"
        )
    return matrices.requires_grad_(False)


def read_role(path: Path, role: str, *, matrices_only: bool = False) -> dict[str, Tensor]:
    """The tensors of one mapper of an encoder, float32, by their official names; {} if it has none."""

    def wanted(name: str) -> bool:
        return not (matrices_only and name.startswith("mapping_"))

    if path.is_dir():
        file = path / f"{role}_mapper.pt"
        state = read_official(file, role) if file.is_file() else {}
        return {name: tensor for name, tensor in state.items() if wanted(name)}
    with _opened(path) as opened:
        names = [name.removeprefix(f"{role}.") for name in opened.keys() if name.startswith(f"{role}.")]  # noqa: SIM118
        return {name: opened.get_tensor(f"{role}.{name}").float() for name in names if wanted(name)}


def read_official(path: Path, role: str) -> dict[str, Tensor]:
    """The tensors of one official pickle in float32; nothing in it is executed.

    role: "global" or "local". UserError for a file that is missing or broken, and for one whose name says it has the
    other role: its tensors do not tell.
    """
    if other := next((other for other in ROLES if other != role and other in path.stem), None):
        raise UserError(f"{path}: this is the {other} mapper, and the {role} one is needed; the two have been swapped")
    state = read_pickle(path, f"the {role} mapper of an ELITE encoder")
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: holds no tensors by name; the {role} mapper of an ELITE encoder is needed")
    return {name: tensor.float() for name, tensor in state.items()}


def check_mapper(state: Mapping[str, Tensor], mapper: LayerMatrices, source: str) -> None:
    """Raise UserError unless `state` has exactly the tensors of `mapper`, saying what it was made for instead."""
    wanted = mapper.state_dict()
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or unknown:
        example = f"{missing[0]} is missing" if missing else f"{unknown[0]} is not one of them"
        raise UserError(
            f"{source}: not a whole mapper for this model: {len(wanted.keys() & state.keys())} of the {len(wanted)} "
            f"tensors are there, {len(unknown)} others ({example}); take another copy, or the model it was trained for"
        )
    wrong = [name for name, tensor in wanted.items() if state[name].shape != tensor.shape]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{source}: made for another model: {len(wrong)} tensors have other sizes, such as {name} with "
            f"{tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}, and this model's text width is "
            f"{mapper.text_width}; the official encoder is for Stable Diffusion 1.x (768) with CLIP ViT-L/14"
        )


def _own_vision(path: Path, about: Mapping[str, Any]) -> VisionFeatures:
    """The vision tower that the file itself holds."""
    try:
        with torch.device("meta"):
            tower: Any = CLIPVisionModel(CLIPVisionConfig(**about["vision_config"]))
            numbers = tower.embeddings.position_ids  # a count, which is not stored
        tower.load_state_dict(read_role(path, "vision"), assign=True, strict=False)
        tower.embeddings.position_ids = torch.arange(numbers.shape[-1])[None]
        if lacking := [name for name, parameter in tower.named_parameters() if parameter.is_meta]:
            raise KeyError(lacking[0])
        return VisionFeatures(tower, about["feature_layers"], about["image_mean"], about["image_std"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{path}: the encoder's vision tower is damaged ({first_line(error)}); take another copy"
        ) from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a complete .safetensors file ({first_line(error)}); take another copy") from error
