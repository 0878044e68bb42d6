"""From recipes to images, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import NamedTuple

import torch
from PIL import Image

from ...utils.errors import UserError
from ..backbone.backbone import Backbone
from ..backbone.safety import SafetyChecker
from ..conditioning.composition import Voice, voices_in
from .recipes import ImageRecipe
from .sampling import (
    NaNImageError,
    PromptConditioning,
    SamplingConfig,
    decode,
    denoise,
    initial_latents,
    prepare_conditioning,
)


class Generated(NamedTuple):
    """One image; `withheld`: the safety checker objected, and the image is black."""

    recipe: ImageRecipe
    image: Image.Image
    withheld: bool


def sampling_config(recipe: ImageRecipe) -> SamplingConfig:
    """The part of a recipe that the sampler needs; UserError for an unknown scheduler."""
    return SamplingConfig(steps=recipe.steps, guidance_scale=recipe.guidance_scale, scheduler=recipe.scheduler)


def generate(
    backbone: Backbone,
    voices: Mapping[str, Voice],
    recipes: Sequence[ImageRecipe],
    *,
    batch_size: int = 4,
    safety_checker: SafetyChecker | None = None,
    on_step: Callable[[int], object] | None = None,
) -> Iterator[Generated]:
    """Yield the images of `recipes`, in order, holding at most `batch_size` latents and one image at a time.

    Neighbouring recipes that differ in nothing but the seed share one conditioning, computed once. Neighbours that the
    sampler treats alike are denoised `batch_size` at a time, whatever their prompts and truncations; an image does not
    depend on which others it shares a batch with.
    voices: by the names in the prompts, that of `{}` under ""; a recipe with a `word` needs none.
    on_step(n): called after every denoising step, n images having made it.
    Raises UserError, saying what to do, when an image comes out as NaN (it would be black).
    """
    for config, group in groupby(recipes, key=sampling_config):
        pending = list(group)
        conditionings = _conditionings(backbone, voices, pending, config)
        for start in range(0, len(pending), batch_size):
            batch = pending[start : start + batch_size]

            def stepped(_: int, images: int = len(batch)) -> None:
                if on_step is not None:
                    on_step(images)

            with torch.inference_mode():  # never around a yield to the caller: its code is not ours to switch
                latents = initial_latents(backbone, [recipe.seed for recipe in batch], config)
                latents = denoise(backbone, list(islice(conditionings, len(batch))), latents, config, stepped)
            for recipe, latent in zip(batch, latents.split(1), strict=True):
                image = _decode(backbone, _speaking(recipe, voices), latent, recipe)
                withheld = safety_checker is not None and safety_checker.withholds([image])[0]
                yield Generated(recipe, Image.new("RGB", image.size) if withheld else image, withheld)


def _conditionings(
    backbone: Backbone, voices: Mapping[str, Voice], recipes: Sequence[ImageRecipe], config: SamplingConfig
) -> Iterator[PromptConditioning]:
    """One for each recipe, computed when it is asked for; neighbours that differ in the seed get the same one."""
    for shared, group in groupby(recipes, key=lambda recipe: replace(recipe, seed=0)):
        conditioning = prepare_conditioning(
            backbone,
            shared.text,
            _speaking(shared, voices),
            config,
            truncation=shared.truncation,
            negative_prompt=shared.negative_prompt,
        )
        for _ in group:
            yield conditioning


def _speaking(recipe: ImageRecipe, voices: Mapping[str, Voice]) -> Mapping[str, Voice]:
    """The voices that the recipe's prompt names."""
    return {} if recipe.word is not None else voices_in(recipe.text, voices)


def _decode(
    backbone: Backbone, speaking: Mapping[str, Voice], latent: torch.Tensor, recipe: ImageRecipe
) -> Image.Image:
    """latent [1,C,h,w] -> its image, or a UserError that says why there is none and what to do."""
    try:
        with torch.inference_mode():
            return decode(backbone, latent)[0]
    except NaNImageError as error:
        broken = [
            f"{slot}: {name}"
            for slot, voice in speaking.items()
            for name, tensor in voice.state_dict().items()
            if not tensor.isfinite().all()
        ]
        if broken:
            advice = f"the concept itself holds NaN or infinity (in {broken[0]}); take an earlier iteration of it"
        elif recipe.torch_dtype == "fp16":
            advice = "float16 overflowed; pass --torch_dtype bf16 or fp32"
        else:
            sound = "the concept is sound and " if speaking else ""
            advice = f"{sound}the models ran in {recipe.torch_dtype}; check the base model's weights"
        raise UserError(f"seed {recipe.seed} of {recipe.prompt!r} would be a black image of NaN: {advice}") from error
