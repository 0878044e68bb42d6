"""The one function that makes pictures: recipes in, images out, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ...utils.errors import UserError
from ..backbone.backbone import Backbone
from ..backbone.safety import SafetyChecker
from ..conditioning.composition import AnyConcept, concepts_in
from ..conditioning.prompt_conditioning import PromptConditioning
from ..methods import Method
from .recipes import ImageRecipe
from .sampling import (
    Denoising,
    NaNImageError,
    Predictor,
    SamplingConfig,
    decode,
    initial_latents,
    prepare_conditioning,
    step_generators,
)


class Drawn(NamedTuple):
    """One image; `withheld`: the safety checker objected, and the image is black."""

    recipe: ImageRecipe
    image: Image.Image
    withheld: bool


def sampling_config(recipe: ImageRecipe) -> SamplingConfig:
    """The part of a recipe that the sampler needs; UserError for an unknown scheduler."""
    return SamplingConfig(
        steps=recipe.steps,
        guidance_scale=recipe.guidance_scale,
        scheduler=recipe.scheduler,
        height=recipe.height,
        width=recipe.width,
    )


def draw(
    backbone: Backbone,
    recipes: Sequence[ImageRecipe],
    concepts: Mapping[str, AnyConcept],
    *,
    batch_size: int = 4,
    safety_checker: SafetyChecker | None = None,
    on_step: Callable[[int], object] | None = None,
    wanted: Collection[ImageRecipe] | None = None,
) -> Iterator[Drawn]:
    """Yield the images of `recipes`, in order, holding at most `batch_size` latents and one image at a time.

    Neighbours that the sampler treats alike are denoised `batch_size` at a time, whatever their prompts, concepts and
    truncations. Those that differ in nothing but the seed share one conditioning. The model is left as it is: several
    threads may draw on it at once.
    concepts: by the names in the prompts and negative prompts, `{}` for the one without a name.
    on_step(n): called after every denoising step, n images having made it.
    wanted: of `recipes`, those that are yielded; None: all. Batches are cut from all of them, and one without any that
        is wanted is left out: what is made later, the rest being there, is the same image bit for bit.
    Raises UserError for a prompt that names an unknown concept, and, saying what to do, when an image comes out as NaN
    (it would be black).
    """
    predict, conditionings = Predictor(backbone), conditionings_of(backbone, recipes, concepts)
    for batch in batches(recipes, batch_size):
        own = list(islice(conditionings, len(batch)))
        asked = [recipe for recipe in batch if wanted is None or recipe in wanted]
        if not asked:
            continue
        with torch.inference_mode():  # never around a yield to the caller: its code is not ours to switch
            images = begin(backbone, batch, own)
            while not images.finished:
                images.advance(predict([images])[0])
                if on_step is not None:
                    on_step(len(asked))
        for recipe, latent in zip(batch, images.latents.split(1), strict=True):
            if recipe in asked:
                yield finish(backbone, recipe, concepts, latent, safety_checker)


def batches(recipes: Sequence[ImageRecipe], size: int) -> Iterator[list[ImageRecipe]]:
    """The recipes in order, up to `size` at a time, all of which the sampler treats alike."""
    for _, group in groupby(recipes, key=sampling_config):
        alike = list(group)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def conditionings_of(
    backbone: Backbone, recipes: Iterable[ImageRecipe], concepts: Mapping[str, AnyConcept]
) -> Iterator[PromptConditioning]:
    """One for each recipe, made when it is asked for; neighbours that differ in the seed get the same one."""
    for shared, group in groupby(recipes, key=lambda recipe: replace(recipe, seed=0)):
        conditioning = prepare_conditioning(
            backbone,
            shared.parsed.text,
            named(shared, concepts),
            sampling_config(shared),
            truncation=shared.truncation,
            negative_prompt=shared.parsed_negative.text,
        )
        for _ in group:
            yield conditioning


def begin(backbone: Backbone, batch: Sequence[ImageRecipe], conditionings: Sequence[PromptConditioning]) -> Denoising:
    """Images of recipes that the sampler treats alike, with their initial noise."""
    config, seeds = sampling_config(batch[0]), [recipe.seed for recipe in batch]
    latents, generators = initial_latents(backbone, seeds, config), step_generators(backbone, seeds, config)
    return Denoising(backbone, conditionings, latents, config, generators)


def finish(
    backbone: Backbone,
    recipe: ImageRecipe,
    concepts: Mapping[str, AnyConcept],
    latent: Tensor,
    safety_checker: SafetyChecker | None = None,
) -> Drawn:
    """The image of a latent [1,C,h,w], decoded and checked; UserError where it is NaN."""
    image = _decode(backbone, named(recipe, concepts), latent, recipe)
    withheld = safety_checker is not None and safety_checker.withholds([image])[0]
    return Drawn(recipe, Image.new("RGB", image.size) if withheld else image, withheld)


def named(recipe: ImageRecipe, concepts: Mapping[str, AnyConcept]) -> dict[str, AnyConcept]:
    """The concepts that the recipe's two prompts name, by the text they stand for, with the recipe's settings.

    A setting is for those concepts whose method has it; UserError if none has.
    """
    found = _found(recipe, concepts)
    for setting, value in (recipe.settings or {}).items():
        those = [slot for slot, each in found.items() if isinstance(each, Method) and each.has_setting(setting)]
        if found and not those:
            methods = (
                ", ".join(sorted({each.name for each in found.values() if isinstance(each, Method)})) or "mixtures"
            )
            raise UserError(f"setting {setting}: no concept in {recipe.prompt!r} has it (methods: {methods})")
        for slot in those:
            each = found[slot]
            assert isinstance(each, Method)
            found[slot] = each.drawn_with(**{setting: value})
    return found


def _found(recipe: ImageRecipe, concepts: Mapping[str, AnyConcept]) -> dict[str, AnyConcept]:
    return {**concepts_in(recipe.parsed, concepts), **concepts_in(recipe.parsed_negative, concepts)}


def _decode(backbone: Backbone, present: Mapping[str, AnyConcept], latent: Tensor, recipe: ImageRecipe) -> Image.Image:
    """latent [1,C,h,w] -> its image, or a UserError that says why there is none and what to do."""
    try:
        with torch.inference_mode():
            return decode(backbone, latent)[0]
    except NaNImageError as error:
        broken = [
            f"{slot}: {name}"
            for slot, concept in present.items()
            for name, tensor in concept.state_dict().items()
            if not tensor.isfinite().all()
        ]
        if broken:
            advice = f"the concept itself holds NaN or infinity (in {broken[0]}); take an earlier iteration of it"
        elif (dtype := backbone.unet.dtype) == torch.float16:
            advice = "float16 overflowed; pass --torch_dtype bf16 or fp32"
        else:
            sound = "the concept is sound and " if present else ""
            advice = f"{sound}the models ran in {str(dtype).removeprefix('torch.')}; check the base model's weights"
        raise NaNImageError(
            f"seed {recipe.seed} of {recipe.prompt!r} would be a black image of NaN: {advice}"
        ) from error
