"""The safety checker that some base models bring along (Stable Diffusion 1.x does, the miniature does not)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...utils.errors import UserError
from .files.locate import ModelFiles, find_model
from .files.quiet import without_warnings
from .files.weights import CHECKER, INDEX, check_files, read_settings
from .loading import explained, load_weights

PROCESSOR = "feature_extractor"  # the folder of the settings by which images are prepared for the checker


def has_safety_checker(name_or_path: str, revision: str | None = None) -> bool:
    """Whether the base model comes with a safety checker. Reads (or fetches) settings only."""
    return _is_named(find_model(name_or_path, revision, weights=()))


class SafetyChecker:
    """Says which images the checker of a base model would withhold.

    checker: a diffusers StableDiffusionSafetyChecker; processor: a transformers CLIPImageProcessor.
    """

    def __init__(self, checker: Any, processor: Any) -> None:
        self.checker = checker
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> SafetyChecker:
        """The base model's own checker. UserError if it has none, or one that lacks any weight or setting: with random
        numbers in their place it would let everything pass."""
        if not has_safety_checker(name_or_path, revision):
            raise UserError(
                f"safety_checker = true, but the base model {name_or_path!r} has none; pass --safety_checker false"
            )
        with without_warnings():  # imported here: diffusers' pipelines take seconds, and most runs have no checker
            from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
            from transformers import CLIPImageProcessor

        files = find_model(name_or_path, revision, weights=(CHECKER,))
        advice = "pass --safety_checker false to draw without it"
        with explained(name_or_path, CHECKER, files, advice):
            checker = load_weights(CHECKER, files.folder / CHECKER, StableDiffusionSafetyChecker, dtype)
        with explained(name_or_path, PROCESSOR, files, advice):
            check_files(files.folder / PROCESSOR, ["preprocessor_config.json"])
            processor = CLIPImageProcessor.from_pretrained(files.folder / PROCESSOR)
        return cls(checker.eval().requires_grad_(False).to(device), processor)

    @torch.inference_mode()
    def withholds(self, images: Sequence[Image.Image]) -> list[bool]:
        """For each image whether the checker objects to it."""
        pixels = self.processor(list(images), return_tensors="pt").pixel_values
        # the checker blacks out the arrays it is given; the pictures themselves are kept out of its reach
        stand_ins = [np.zeros((1, 1, 3), dtype=np.uint8) for _ in images]
        return list(self.checker(clip_input=pixels.to(self.checker.device, self.checker.dtype), images=stand_ins)[1])


def _is_named(files: ModelFiles) -> bool:
    """Whether there is a folder of it, or the index speaks of one: a model that lost its checker is not without one."""
    if (files.folder / CHECKER).is_dir() or files.checkpoint is not None:
        return (files.folder / CHECKER).is_dir()
    try:
        return read_settings(files.folder / INDEX).get(CHECKER, [None])[0] is not None
    except (OSError, ValueError, TypeError, LookupError):
        return False  # no index: what is there counts
