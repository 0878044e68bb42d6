"""What `scripts/inference.py` does with its config: plan, check, generate, write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from ..models.backbone import Backbone
from ..models.concept_files import ConceptFiles
from ..models.generate import Generated, generate, sampling_config
from ..models.safety import SafetyChecker, has_safety_checker
from ..models.tokens import tokenize
from ..utils.devices import pick_device
from ..utils.errors import UserError
from ..utils.gallery import Gallery
from ..utils.prompts import fill
from ..utils.recipe import ImageRecipe, content_hash, made_with
from .inference_config import InferenceConfig

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class InferenceRun:
    """One set of images. Making the object checks all that can be checked without the base model's weights.

    recipes: prompt -> all its images, truncation by truncation; missing: the same, without the finished ones.
    Raises UserError for a device that is not there, a concept file that cannot be loaded, a prompt without `{}`, a
    truncation the concept does not have, an unknown scheduler, a base model that cannot be found, a safety checker it
    does not have, and images of another recipe in the way.
    """

    def __init__(self, config: InferenceConfig, files: ConceptFiles, prompts: Sequence[str]) -> None:
        self.config = config
        self.files = files
        self.device = pick_device(config.device)
        self.concept = files.load()
        for prompt in prompts:
            fill(prompt, self.concept.placeholder)
        for truncation in config.truncations:
            self.concept.method.check_truncation(truncation)

        self.base_model = config.pretrained_model_name_or_path or self.concept.metadata.get("base_model", "")
        if not self.base_model:
            raise UserError(f"{files.concept} does not name its base model: pass --pretrained_model_name_or_path")
        self.has_checker = has_safety_checker(self.base_model, config.revision)
        self.use_checker = self.has_checker if config.safety_checker is None else config.safety_checker
        if self.use_checker and not self.has_checker:
            raise UserError(
                f"safety_checker = true, but the base model {self.base_model} has none; pass --safety_checker false"
            )

        common = self._recipe()
        sampling_config(common)
        self.gallery = Gallery(replace(config, iteration=files.iteration).output_dir)
        self.recipes = {
            prompt: [
                replace(common, prompt=prompt, truncation=truncation, seed=seed)
                for truncation in dict.fromkeys(config.truncations)
                for seed in dict.fromkeys(config.seeds)
            ]
            for prompt in dict.fromkeys(prompts)
        }
        missing = self.gallery.unfinished([recipe for recipes in self.recipes.values() for recipe in recipes])
        self.missing = {prompt: [r for r in missing if r.prompt == prompt] for prompt in self.recipes}

    def _recipe(self) -> ImageRecipe:
        """What all images of this run have in common."""
        config = self.config
        return ImageRecipe(
            prompt="",
            negative_prompt=config.negative_prompt,
            seed=0,
            truncation=None,
            steps=config.num_denoising_steps,
            guidance_scale=config.guidance_scale,
            scheduler=config.scheduler,
            base_model=self.base_model,
            base_revision=config.revision,
            concept=content_hash(self.files.paths),
            placeholder=self.concept.placeholder,
            torch_dtype=config.torch_dtype.value,
            safety_checker=self.use_checker,
        )

    @property
    def num_images(self) -> int:
        """How many images were asked for."""
        return sum(map(len, self.recipes.values()))

    @property
    def num_missing(self) -> int:
        """How many of them are not there yet."""
        return sum(map(len, self.missing.values()))

    def images(self, on_step: Callable[[int], object] | None = None) -> Iterator[Generated]:
        """Make the missing images, write and yield each, and bring every prompt's grids up to date.

        on_step(n): called after every denoising step, n images having made it.
        """
        self.gallery.require_writable()
        backbone, checker = self._load() if self.num_missing else (None, None)
        about = made_with(self.files.paths, str(self.device))
        for prompt, recipes in self.recipes.items():
            if backbone is not None:
                for made in generate(
                    backbone,
                    self.concept,
                    self.missing[prompt],
                    batch_size=self.config.batch_size,
                    safety_checker=checker,
                    on_step=on_step,
                ):
                    withheld = {"withheld_by": "safety checker"} if made.withheld else {}
                    self.gallery.add(made.image, made.recipe, {**withheld, "made_with": about})
                    yield made
            self.gallery.write_grids(recipes)

    def _load(self) -> tuple[Backbone, SafetyChecker | None]:
        """The base model, and the last checks: that the concept fits it and the prompts are not too long for it."""
        dtype, revision = DTYPES[self.config.torch_dtype.value], self.config.revision
        backbone = Backbone.from_pretrained(self.base_model, revision=revision, dtype=dtype, device=self.device)
        self.concept.check_fits(backbone, source=str(self.files.concept))
        placeholder = self.concept.placeholder
        tokenize(backbone.tokenizer, [fill(prompt, placeholder) for prompt in self.recipes], [placeholder])
        checker = None
        if self.use_checker:
            checker = SafetyChecker.from_pretrained(self.base_model, revision=revision, device=self.device)
        return backbone, checker
