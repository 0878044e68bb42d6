"""From the name of a model to its files: bundled, a folder, a checkpoint, or a hub repository."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ....utils.errors import UserError, first_line
from ....utils.hashing import SHORT, file_hash, sha256
from .hub import HUB_NAME, fetch
from .single_file import ENDINGS, Checkpoint, open_checkpoint, parameters
from .weights import CHECKER, INDEX, SECOND, WEIGHTS, find_weights

BUNDLED = {
    "miniature": Path(__file__).parents[2] / "miniature" / "sd",
    "miniature-judge": Path(__file__).parents[2] / "miniature" / "judge",
}
MOVED = "if it was moved, give its new path as pretrained_model_name_or_path"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model lies. folder: its settings, tokenizer, and the weights of each part. checkpoint: the one file that
    holds all weights instead."""

    folder: Path
    checkpoint: Checkpoint | None = None

    @property
    def text_encoders(self) -> list[str]:
        """Its parts that are text encoders: one, or two as of SDXL."""
        return ["text_encoder", *([SECOND] if (self.folder / SECOND).is_dir() else [])]

    @property
    def tokenizers(self) -> list[str]:
        """Their tokenizers."""
        return [encoder.replace("text_encoder", "tokenizer") for encoder in self.text_encoders]

    def tokenizer(self, part: str) -> tuple[Path, str | None]:
        """The folder of a tokenizer, and its padding where that is not the folder's own."""
        return self.checkpoint.tokenizer(part) if self.checkpoint else (self.folder / part, None)


def find_model(name_or_path: str, revision: str | None = None, weights: Collection[str] = WEIGHTS) -> ModelFiles:
    """The local files of a model. Of a hub repository, the weights of the parts in `weights` are fetched.

    With the U-Net comes the safety checker, so that drawing needs no network afterwards.
    Raises UserError naming what was tried if there is no such folder or file, or neither a network nor a cached copy.
    """
    path = BUNDLED.get(name_or_path, Path(name_or_path).expanduser())
    if name_or_path and os.path.isdir(path):
        return ModelFiles(path)
    if name_or_path in BUNDLED:
        raise UserError(f"model {name_or_path!r}: the bundled weights are missing from {path}; reinstall the project")
    if os.path.isfile(path) or path.suffix in ENDINGS:
        return _checkpoint(name_or_path, path)
    if not HUB_NAME.fullmatch(name_or_path):
        raise UserError(
            f"model {name_or_path!r}: no such folder; give a folder in diffusers format, a checkpoint file, a hub name "
            f"such as 'CompVis/stable-diffusion-v1-4', or 'miniature' ({MOVED})"
        )
    others = {"unet": CHECKER, "text_encoder": SECOND}
    return ModelFiles(fetch(name_or_path, revision, [*weights, *(others[part] for part in weights if part in others)]))


def model_folder(name_or_path: str, revision: str | None = None, weights: Collection[str] = WEIGHTS) -> Path:
    """The folder of a model's settings, see `find_model`."""
    return find_model(name_or_path, revision, weights).folder


def model_hash(name_or_path: str, revision: str | None = None, parts: Collection[str] = WEIGHTS) -> str:
    """12 hex digits of what `parts` of a model are loaded from: weights and settings, tokenizer and noise schedule.

    The files count with their names inside the model, so that a moved or copied model keeps its hash, and only those
    that are read: others that lie in the folder do not count. Raises UserError as `find_model`, and for missing files.
    """
    files = find_model(name_or_path, revision, parts)
    try:
        lines = [f"{name} {file_hash(path)}\n".encode() for name, path in sorted(_used(files, parts).items())]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"model {name_or_path!r}: incomplete in {files.folder} ({first_line(error)})") from error
    return sha256(lines)[:SHORT]


def _used(files: ModelFiles, parts: Collection[str]) -> dict[str, Path]:
    """The files that `parts` of a model are loaded from, by their names inside the model."""
    used = {"scheduler": files.folder / "scheduler" / "scheduler_config.json"}
    for tokenizer in files.tokenizers:
        used |= {f"{tokenizer}/{path.name}": path for path in files.tokenizer(tokenizer)[0].glob("*") if path.is_file()}
    if len(files.text_encoders) > 1:
        used["index"] = files.folder / INDEX  # what stands in the place of an empty prompt
    for part in (*parts, *(files.text_encoders[1:] if "text_encoder" in parts else [])):
        used[part] = files.folder / part / "config.json"
        if files.checkpoint is None:
            names = find_weights(part, files.folder / part).names
            used |= {f"{part}/{name}": files.folder / part / name for name in names}
    if files.checkpoint is None:
        return used
    beside = {"parameters": parameters(files.checkpoint.path)}
    return used | {"checkpoint": files.checkpoint.path} | {key: path for key, path in beside.items() if path.is_file()}


def _checkpoint(name: str, path: Path) -> ModelFiles:
    if not os.path.isfile(path):
        raise UserError(f"model {name!r}: no such file ({MOVED})")
    if path.suffix not in ENDINGS:
        raise UserError(
            f"model {name!r}: is a file; give a folder, or a checkpoint that ends in {' or '.join(ENDINGS)}"
        )
    try:
        checkpoint = open_checkpoint(path)
    except Exception as error:  # anybody's file
        raise UserError(f"model {name!r}: {first_line(error)}") from error
    return ModelFiles(checkpoint.settings, checkpoint)
