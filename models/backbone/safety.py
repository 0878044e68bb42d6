"""The safety checker that some base models bring along (Stable Diffusion 1.x does, the miniature does not)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...utils.errors import UserError
from .loading import model_folder

CHECKER, PROCESSOR = "safety_checker", "feature_extractor"  # their folders in a diffusers-format model


def has_safety_checker(name_or_path: str, revision: str | None = None) -> bool:
    """Whether the base model comes with a safety checker. Reads (or fetches) configs only."""
    folder = model_folder(name_or_path, revision, weights=())
    return (folder / CHECKER).is_dir() and (folder / PROCESSOR).is_dir()


class SafetyChecker:
    """Says which images the checker of a base model would withhold.

    checker: a diffusers StableDiffusionSafetyChecker; processor: a transformers CLIPImageProcessor.
    """

    def __init__(self, checker: Any, processor: Any) -> None:
        self.checker = checker
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, *, revision: str | None = None, device: str | torch.device = "cpu"
    ) -> SafetyChecker:
        """The base model's own checker, in float32; UserError if it has none or it cannot be loaded."""
        if not has_safety_checker(name_or_path, revision):
            raise UserError(
                f"safety_checker = true, but the base model {name_or_path!r} has none; pass --safety_checker false"
            )
        # imported here: diffusers' pipelines take seconds, and most runs have no checker
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        folder = model_folder(name_or_path, revision, weights=())
        local = (folder / CHECKER / "model.safetensors").is_file()
        source, version = str(folder) if local else name_or_path, revision or "main"
        try:
            checker = StableDiffusionSafetyChecker.from_pretrained(source, revision=version, subfolder=CHECKER)
            processor = CLIPImageProcessor.from_pretrained(source, revision=version, subfolder=PROCESSOR)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"cannot load the safety checker of {name_or_path!r} ({reason})") from error
        return cls(checker.eval().requires_grad_(False).to(device), processor)

    @torch.inference_mode()
    def withholds(self, images: Sequence[Image.Image]) -> list[bool]:
        """For each image whether the checker objects to it."""
        pixels = self.processor(list(images), return_tensors="pt").pixel_values.to(self.checker.device)
        # the checker blacks out the arrays it is given; the pictures themselves are kept out of its reach
        stand_ins = [np.zeros((1, 1, 3), dtype=np.uint8) for _ in images]
        return list(self.checker(clip_input=pixels, images=stand_ins)[1])
