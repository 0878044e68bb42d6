"""How a picture becomes the input of a metric model: explicit, recorded, the same whatever else is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

from .resizing import Resizing

MAX_SIZE = 4096  # pixels of a side


class MetricInput:
    """Pictures of any size to the model's pixels [B,3,H,W], after the preprocessor_config.json in the model's folder.

    The config decides sizes, crop, filter and normalisation; `resizing` decides on what the filter runs.
    """

    def __init__(self, folder: Path, resizing: Resizing) -> None:
        """OSError, ValueError, TypeError or AttributeError if the folder has no preprocessor_config.json, or none that
        says how."""
        # pinned: with torchvision installed the default would resize on tensors, without it with Pillow
        self.processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        self.resizing = resizing
        given = [_given(getattr(self.processor, name, None) or {}) for name in ("size", "crop_size")]
        sizes = [size for sides in given for size in sides.values()]
        if not all(type(size) is int and 0 < size <= MAX_SIZE for size in sizes):
            raise ValueError(f"its preprocessor_config.json has a size that is no whole number from 1 to {MAX_SIZE}")
        self([Image.new("RGB", (8, 8))])  # settings that cannot be used are found now

    @property
    def record(self) -> dict[str, Any]:
        """What decides the pixels, for the protocol and the cache."""
        ours = self.processor
        crop = ours.crop_size if getattr(ours, "do_center_crop", False) else None
        return {
            "resizing": self.resizing.value,
            "size": _given(ours.size) if ours.do_resize else None,
            "center_crop": _given(crop) if crop else None,
            "filter": Image.Resampling(ours.resample).name.lower() if self.resizing is Resizing.pil else "bicubic",
            "mean": list(ours.image_mean) if ours.do_normalize else None,
            "std": list(ours.image_std) if ours.do_normalize else None,
        }

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures to [B,3,H,W] float32, on the CPU."""
        if self.resizing is Resizing.pil:
            return self.processor(list(images), return_tensors="pt").pixel_values.float()
        return torch.stack([self._on_tensors(image) for image in images])

    def _on_tensors(self, image: Image.Image) -> Tensor:
        record = self.record
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255.0).permute(2, 0, 1)
        if record["size"]:
            size = _target(record["size"], *pixels.shape[1:])
            pixels = F.interpolate(pixels[None], size, mode="bicubic", antialias=False, align_corners=False)[0]
        if crop := record["center_crop"]:
            top, left = (pixels.shape[1] - crop["height"]) // 2, (pixels.shape[2] - crop["width"]) // 2
            pixels = pixels[:, top : top + crop["height"], left : left + crop["width"]]
        if record["mean"]:
            mean, std = (torch.tensor(record[key])[:, None, None] for key in ("mean", "std"))
            pixels = (pixels - mean) / std
        return pixels


def _given(size: Any) -> dict[str, int]:
    """The entries of a transformers SizeDict that are set."""
    return {key: value for key, value in dict(size).items() if value is not None}


def _target(size: dict[str, int], height: int, width: int) -> tuple[int, int]:
    """Height and width after resizing: fixed, or in proportion with the shorter edge given."""
    if "shortest_edge" not in size:
        return size["height"], size["width"]
    edge, short = size["shortest_edge"], min(height, width)
    return int(edge * height / short), int(edge * width / short)
