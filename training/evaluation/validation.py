"""Grids of images made during training, by the function that all pictures are made by."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from PIL import Image

from ...models.backbone.backbone import Backbone
from ...models.conditioning.prompts import SLOT
from ...models.generation.draw import draw
from ...models.generation.gallery import Variant, in_words, variant_of
from ...models.generation.recipes import ImageRecipe
from ...models.methods import Method
from ...utils.grid import labelled_grid
from ..config.run import EvalConfig


def validation_recipes(config: EvalConfig, placeholder: str) -> dict[Variant, list[ImageRecipe]]:
    """The images of each grid: one grid for every truncation and combination of settings, none without prompts."""
    found: dict[Variant, list[ImageRecipe]] = {}
    for truncation in config.validation_truncations:
        for settings in config.variants:
            for prompt in config.validation_prompts or ():
                for seed in config.seeds:
                    recipe = ImageRecipe(
                        prompt,
                        seed=seed,
                        truncation=truncation,
                        settings=settings,
                        steps=config.num_denoising_steps,
                        placeholder=placeholder,
                    )
                    found.setdefault(variant_of(recipe), []).append(recipe)
    return found


def validation_grids(
    backbone: Backbone,
    method: Method,
    placeholder: str,
    config: EvalConfig,
    step: int,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[tuple[Variant, Image.Image]]:
    """Yield (variant, grid) for each of `validation_recipes`: prompts down, seeds across.

    Every image draws from its own generator and the method comes back as it was, so training is not disturbed.
    on_step(n): called after every denoising step of n images.
    Raises UserError instead of showing black images.
    """
    for variant, recipes in validation_recipes(config, placeholder).items():
        images = [drawn.image for drawn in draw(backbone, recipes, {SLOT: method}, on_step=on_step)]
        rows = [images[start : start + len(config.seeds)] for start in range(0, len(images), len(config.seeds))]
        yield (
            variant,
            labelled_grid(
                rows,
                row_labels=config.validation_prompts or (),
                column_labels=[f"seed {seed}" for seed in config.seeds],
                title=", ".join([f"{placeholder} after {step} steps", *in_words(variant)]),
            ),
        )
