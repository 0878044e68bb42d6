"""Features of image files, computed batch by batch and kept by content: an image is looked at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from ...utils.errors import UserError
from ...utils.files import write_atomically
from ...utils.hashing import file_hash, json_hash
from ...utils.images import load_image
from ..conditioning.prompts import safe_name
from .metric_model import MetricModel

UNIT_TOLERANCE = 1e-3  # of a stored feature's length: what falls outside was not written by us, or is damaged
OUTSIDE = (128, 128, 128)  # what a mask hides becomes this grey, near the mean that CLIP's input is centred on


@dataclass(frozen=True)
class Picture:
    """An image file, or what a mask file of any size leaves of it: white is kept, black becomes grey."""

    path: Path
    mask: Path | None = None

    @property
    def content(self) -> str:
        """A name that follows the bytes of the file and its mask. UserError if they cannot be read."""
        try:
            return file_hash(*(path for path in (self.path, self.mask) if path))
        except OSError as error:
            raise UserError(f"the image {self.path} cannot be read ({error.strerror}); check the file") from None

    def load(self) -> Image.Image:
        """The picture as RGB. UserError if a file is no image."""
        image = load_image(self.path)
        if self.mask is None:
            return image
        mask = load_image(self.mask, background="black").convert("L").resize(image.size, Image.Resampling.BILINEAR)
        return Image.composite(image, Image.new("RGB", image.size, OUTSIDE), mask)


class FeatureCache:
    """A folder of one small file per image. Models, preprocessings and devices each have a subfolder of their own.

    folder None: nothing is kept. An entry that cannot be read, or is no unit vector, counts as absent and is replaced.
    """

    def __init__(self, folder: Path | None, model: MetricModel) -> None:
        record: dict[str, Any] = {key: value for key, value in model.record.items() if key != "name"}
        self.folder = folder and folder / f"{safe_name(Path(model.name).name)}-{json_hash(record)}"

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
    model: MetricModel,
    pictures: Sequence[Picture],
    cache: FeatureCache,
    batch_size: int,
    on_images: Callable[[int], object] | None = None,
) -> Tensor:
    """Unit features [N,D] of pictures, in order. Never more than `batch_size` of them are held at once.

    on_images(n): called when n more are done, cached ones included. UserError for a file that is no image.
    """
    features: dict[str, Tensor] = {}
    contents = [picture.content for picture in pictures]
    todo: dict[str, Picture] = {}
    for picture, content in zip(pictures, contents, strict=True):
        if content not in features and content not in todo:
            if (feature := cache.read(content)) is None:
                todo[content] = picture
            else:
                features[content] = feature
    if on_images:
        on_images(len(pictures) - len(todo))
    missing = list(todo.items())
    for batch in (missing[start : start + batch_size] for start in range(0, len(missing), batch_size)):
        computed = model.image_features([picture.load() for _, picture in batch])
        for (content, picture), feature in zip(batch, computed, strict=True):
            if not bool(feature.isfinite().all()):
                raise UserError(f"{model.name} gives NaN for {picture.path}: its weights are at fault; choose another")
            cache.write(content, feature)
            features[content] = feature
        if on_images:
            on_images(len(batch))
    return torch.stack([features[content] for content in contents])
