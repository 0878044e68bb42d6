"""Features of image files, computed batch by batch and kept by content: an image is judged once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ...utils.errors import UserError
from ...utils.image_files import write_atomically
from ...utils.images import load_image
from ..conditioning.prompts import safe_name
from ..generation.recipes import content_hash
from .judge import ImageJudge

UNIT_TOLERANCE = 1e-3  # of a stored feature's length: what falls outside was not written by us, or is damaged


class FeatureCache:
    """A folder of one small file per image. Judges and preprocessings do not meet: each has its own subfolder.

    folder None: nothing is kept. An entry that cannot be read, or is no unit vector, counts as absent and is replaced.
    """

    def __init__(self, folder: Path | None, judge: ImageJudge) -> None:
        record: dict[str, Any] = {key: value for key, value in judge.record.items() if key != "name"}
        key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder and folder / f"{safe_name(Path(judge.name).name)}-{key}"

    def read(self, content: str) -> Tensor | None:
        """The feature [D] of the image with this content hash, or None."""
        if self.folder is None:
            return None
        try:
            feature = safetensors.torch.load(self._path(content).read_bytes())["feature"]
        except (OSError, SafetensorError, KeyError):
            return None
        intact = feature.dim() == 1 and feature.dtype == torch.float32 and abs(feature.norm() - 1) < UNIT_TOLERANCE
        return feature if intact else None

    def write(self, content: str, feature: Tensor) -> None:
        """Keep a feature [D]. UserError if the folder cannot be written to."""
        if self.folder is not None:
            data = safetensors.torch.save({"feature": feature.contiguous()})
            write_atomically(self._path(content), lambda file: file.write(data))

    def _path(self, content: str) -> Path:
        assert self.folder is not None
        name = content.removeprefix("sha256:")
        return self.folder / name[:2] / f"{name}.safetensors"


def file_features(
    judge: ImageJudge,
    paths: Sequence[Path],
    cache: FeatureCache,
    batch_size: int,
    on_images: Callable[[int], object] | None = None,
) -> Tensor:
    """Unit features [N,D] of image files, in order. Never more than `batch_size` images are held at once.

    on_images(n): called when n more are done, cached ones included. UserError for a file that is no image.
    """
    features: dict[str, Tensor] = {}
    contents = [_content(path) for path in paths]
    todo: dict[str, Path] = {}
    for path, content in zip(paths, contents, strict=True):
        if content not in features and content not in todo:
            if (feature := cache.read(content)) is None:
                todo[content] = path
            else:
                features[content] = feature
    if on_images:
        on_images(len(paths) - len(todo))
    for batch in _batches(list(todo.items()), batch_size):
        computed = judge.image_features([load_image(path) for _, path in batch])
        for (content, path), feature in zip(batch, computed, strict=True):
            if not bool(feature.isfinite().all()):
                raise UserError(f"{judge.name} gives NaN for {path}: its weights are at fault; choose another judge")
            cache.write(content, feature)
            features[content] = feature
        if on_images:
            on_images(len(batch))
    return torch.stack([features[content] for content in contents])


def _content(path: Path) -> str:
    try:
        return content_hash([path])
    except OSError as error:
        raise UserError(f"the image {path} cannot be read ({error.strerror}); check the file") from None


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
