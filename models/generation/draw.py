"""The one function that makes pictures: recipes in, images out, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ...utils.errors import UserError
from ..backbone.backbone import Backbone
from ..backbone.safety import SafetyChecker
from ..conditioning.composition import AnyConcept, concepts_in
from ..methods import Method
from .recipes import ImageRecipe
from .sampling import (
    NaNImageError,
    PromptConditioning,
    SamplingConfig,
    decode,
    denoise,
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

    Neighbours that the sampler treats alike are denoised `batch_size` at a time, whatever their prompts and
    truncations, unless a concept edits the attention, which then has to be the same for the batch. Those that differ in
    nothing but the seed share one conditioning. The model is left as it is: several threads may draw on it at once.
    concepts: by the names in the prompts and negative prompts, `{}` for the one without a name.
    on_step(n): called after every denoising step, n images having made it.
    wanted: of `recipes`, those that are yielded; None: all. Batches are cut from all of them, and one without any that
        is wanted is left out: what is made later, the rest being there, is the same image bit for bit.
    Raises UserError for a prompt that names an unknown concept, and, saying what to do, when an image comes out as NaN
    (it would be black).
    """
    for (config, _), group in groupby(recipes, key=lambda recipe: (sampling_config(recipe), _edits(recipe, concepts))):
        pending = list(group)
        conditionings = _conditionings(backbone, pending, concepts, config)
        for start in range(0, len(pending), batch_size):
            batch = pending[start : start + batch_size]
            asked = [recipe for recipe in batch if wanted is None or recipe in wanted]
            own = list(islice(conditionings, len(batch)))
            if not asked:
                continue

            def stepped(_: int, images: int = len(asked)) -> None:
                if on_step is not None:
                    on_step(images)

            with torch.inference_mode():  # never around a yield to the caller: its code is not ours to switch
                latents = initial_latents(backbone, [recipe.seed for recipe in batch], config)
                generators = step_generators(backbone, [recipe.seed for recipe in batch], config)
                latents = denoise(backbone, own, latents, config, stepped, generators)
            for recipe, latent in zip(batch, latents.split(1), strict=True):
                if recipe not in asked:
                    continue
                image = _decode(backbone, named(recipe, concepts), latent, recipe)
                withheld = safety_checker is not None and safety_checker.withholds([image])[0]
                yield Drawn(recipe, Image.new("RGB", image.size) if withheld else image, withheld)


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


def _edits(recipe: ImageRecipe, concepts: Mapping[str, AnyConcept]) -> tuple[Any, ...]:
    """Which concepts edit the attention, how, and at which slot: what all recipes of a batch must have in common."""
    own = _found(recipe, concepts).values()
    if not any(each.projection() is not None for each in own):
        return ()
    return *(id(each) for each in own), *sorted((recipe.settings or {}).items())


def _conditionings(
    backbone: Backbone, recipes: Sequence[ImageRecipe], concepts: Mapping[str, AnyConcept], config: SamplingConfig
) -> Iterator[PromptConditioning]:
    """One for each recipe, made when it is asked for; neighbours that differ in the seed get the same one."""
    for shared, group in groupby(recipes, key=lambda recipe: replace(recipe, seed=0)):
        conditioning = prepare_conditioning(
            backbone,
            shared.parsed.text,
            named(shared, concepts),
            config,
            truncation=shared.truncation,
            negative_prompt=shared.parsed_negative.text,
        )
        for _ in group:
            yield conditioning


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
