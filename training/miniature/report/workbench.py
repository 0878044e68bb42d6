"""What makes the report resumable: results and images on disk, under names that hash everything they depend on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ....models.backbone.backbone import Backbone
from ....models.concepts.concept import Concept
from ....models.conditioning.prompts import SLOT
from ....models.generation.sampling import SamplingConfig, decode, denoise, initial_latents, prepare_conditioning
from ....utils.files import write_json
from ....utils.hashing import json_hash
from ....utils.images.png import write_png


class Results:
    """Raw numbers as JSON files, one per row of the report and set of inputs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str, inputs: Mapping[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` gave for these inputs, now or in an earlier call."""
        path = self.folder / f"{name}-{json_hash(dict(inputs))}.json"
        if not path.exists():
            print(f"measuring: {name}", flush=True)
            write_json({"inputs": dict(inputs), "result": measure()}, path)
        return json.loads(path.read_text(encoding="utf-8"))["result"]


class Painter:
    """Images of one model by prompt, seed and concept: made once, read afterwards."""

    def __init__(self, backbone: Backbone, model: str, sampling: SamplingConfig, folder: Path) -> None:
        """model: digest of the backbone's files."""
        self.backbone, self.model, self.sampling, self.folder = backbone, model, sampling, folder

    def paint(
        self, prompt: str, seeds: Sequence[int], concept: Concept | None = None, concept_digest: str = ""
    ) -> list[Image.Image]:
        """One image per seed of a plain prompt, or of one with {} that is filled with the concept."""
        sampling = self.sampling
        recipe = [self.model, prompt, sampling.steps, sampling.guidance_scale, sampling.scheduler, concept_digest]
        key = json_hash(recipe)
        paths = {seed: self.folder / f"{key}-{seed}.png" for seed in seeds}
        missing = [seed for seed, path in paths.items() if not path.exists()]
        if missing:
            for seed, image in zip(missing, self._make(prompt, missing, concept), strict=True):
                write_png(image, paths[seed], {"prompt": prompt, "seed": seed})
        return [Image.open(paths[seed]).convert("RGB") for seed in seeds]

    @torch.inference_mode()
    def _make(self, prompt: str, seeds: Sequence[int], concept: Concept | None) -> list[Image.Image]:
        methods = {SLOT: concept.method} if concept else {}
        conditioning = prepare_conditioning(self.backbone, prompt, methods, self.sampling)
        noise = initial_latents(self.backbone, seeds, self.sampling)
        return decode(self.backbone, denoise(self.backbone, conditioning, noise, self.sampling))
