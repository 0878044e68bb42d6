"""`draw`: one conditioning per prompt and truncation, bounded batches, and a reason for every black image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from frames import created
from perfusion_concepts import make_perfusion

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.generation.draw import draw
from neti.models.generation.recipes import ImageRecipe
from neti.models.methods import Method, NeTI, NeTIConfig
from neti.utils.errors import UserError

RECIPE = ImageRecipe("A photo of a {}", steps=2, placeholder="<toy>")


@pytest.fixture
def concept(tiny_backbone: Backbone) -> Concept:
    method = created(
        NeTI,
        NeTIConfig(),
        tiny_backbone.frame.num_places,
        tiny_backbone.word_embedding("toy"),
        torch.Generator().manual_seed(0),
    )
    return Concept(method.eval(), "<toy>", "toy")


def test_seeds_share_one_conditioning_and_batches_are_bounded(tiny_backbone: Backbone, concept: Concept) -> None:
    mapper_calls: list[str] = []
    concept.method.get_submodule("mapper").register_forward_pre_hook(lambda *_: mapper_calls.append("called"))
    unet_rows: list[int] = []
    tiny_backbone.unet.register_forward_pre_hook(lambda _, args: unet_rows.append(len(args[0])))
    recipes = [replace(RECIPE, seed=seed, truncation=truncation) for truncation in (None, 8) for seed in range(5)]
    steps: list[int] = []
    made = list(draw(tiny_backbone, recipes, {"{}": concept.method}, batch_size=2, on_step=steps.append))
    assert [image.recipe for image in made] == recipes
    assert len(mapper_calls) == 2, "one call per truncation, for all layers, steps and seeds"
    assert unet_rows == [4] * 2 * 5, "both branches of guidance in one call, two steps a batch, two images in each"
    assert sum(steps) == len(recipes) * RECIPE.steps


def test_prompts_of_one_seed_fill_a_batch(tiny_backbone: Backbone, concept: Concept) -> None:
    prompts = ["A photo of a {}", "Oil painting of {}", "A photo of a {} on the moon"]
    recipes = [replace(RECIPE, prompt=prompt, truncation=n) for prompt in prompts for n in (None, 8)]
    recipes.append(replace(RECIPE, guidance_scale=1.0))
    unet_rows: list[int] = []
    tiny_backbone.unet.register_forward_pre_hook(lambda _, args: unet_rows.append(len(args[0])))
    together = list(draw(tiny_backbone, recipes, {"{}": concept.method}, batch_size=4))
    assert unet_rows == [8, 8, 4, 4, 1, 1], "other sampling is a batch of its own"
    assert [image.recipe for image in together] == recipes
    for image in together:
        [alone] = draw(tiny_backbone, [image.recipe], {"{}": concept.method})
        pixels, expected = (np.asarray(each.image, dtype=int) for each in (image, alone))
        assert np.abs(pixels - expected).max() <= 1
    assert len({image.image.tobytes() for image in together}) == len(recipes)


def test_images_are_made_one_batch_at_a_time(tiny_backbone: Backbone, concept: Concept) -> None:
    calls: list[int] = []
    tiny_backbone.unet.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    recipes = [replace(RECIPE, seed=seed) for seed in range(6)]
    images = draw(tiny_backbone, recipes, {"{}": concept.method}, batch_size=2)
    next(images)
    assert len(calls) == RECIPE.steps
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), "the caller keeps its own mode"


def test_float16_overflow_is_explained(tiny_backbone: Backbone, concept: Concept) -> None:
    with torch.no_grad():
        tiny_backbone.vae.decoder.conv_in.weight.mul_(1e6)  # float32 holds it, float16 does not
    [fine] = draw(tiny_backbone, [RECIPE], {"{}": concept.method})
    assert not fine.withheld
    tiny_backbone.to("cpu", torch.float16)
    with pytest.raises(UserError, match="float16 overflowed; pass --torch_dtype bf16 or fp32"):
        list(draw(tiny_backbone, [replace(RECIPE, torch_dtype="fp16")], {"{}": concept.method}))


def test_a_broken_base_model_is_told_from_a_broken_concept(tiny_backbone: Backbone, concept: Concept) -> None:
    with torch.no_grad():
        tiny_backbone.vae.decoder.conv_in.weight.view(-1)[0] = float("nan")
    with pytest.raises(UserError, match="check the base model"):
        list(draw(tiny_backbone, [RECIPE], {"{}": concept.method}))
    with torch.no_grad():
        next(concept.method.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(UserError, match="the concept itself holds NaN"):
        list(draw(tiny_backbone, [RECIPE], {"{}": concept.method}))


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "Oil painting of {}"},
        {"negative_prompt": "a painting"},
        {"seed": 1},
        {"truncation": 2},
        {"steps": 3},
        {"guidance_scale": 1.0},
        {"scheduler": "ddim"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_entry_of_a_recipe_changes_the_image(
    tiny_backbone: Backbone, concept: Concept, change: dict[str, Any]
) -> None:
    plain, changed = draw(tiny_backbone, [RECIPE, replace(RECIPE, **change)], {"{}": concept.method})
    assert plain.image.tobytes() != changed.image.tobytes()


def test_what_is_made_later_is_the_same_bit_for_bit(tiny_backbone: Backbone, concept: Concept) -> None:
    recipes = [replace(RECIPE, seed=seed) for seed in range(5)]
    known = {"{}": concept.method}
    at_once = {made.recipe.seed: made.image.tobytes() for made in draw(tiny_backbone, recipes, known, batch_size=3)}
    rows: list[int] = []
    tiny_backbone.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    steps: list[int] = []
    later = draw(tiny_backbone, recipes, known, batch_size=3, on_step=steps.append, wanted=[recipes[4]])
    assert {made.recipe.seed: made.image.tobytes() for made in later} == {4: at_once[4]}
    assert rows == [4, 4], "the batch of seeds 0 to 2 is left out, and seed 3 is denoised beside seed 4"
    assert sum(steps) == RECIPE.steps


def test_two_threads_draw_what_each_draws_alone(tiny_backbone: Backbone, concept: Concept) -> None:
    known = {"{}": concept.method}
    calls = [
        [replace(RECIPE, prompt=prompt, seed=seed) for seed in range(2)] for prompt in ("a {}", "oil painting of {}")
    ]

    def made(recipes: list[ImageRecipe]) -> list[bytes]:
        return [drawn.image.tobytes() for drawn in draw(tiny_backbone, recipes, known)]

    alone = [made(recipes) for recipes in calls]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            assert list(pool.map(made, calls)) == alone


@pytest.mark.parametrize("wrong", ["{nobody}", "{} and {cat}"])
def test_a_concept_in_the_negative_prompt_counts(tiny_backbone: Backbone, concept: Concept, wrong: str) -> None:
    known = {"{}": concept.method}
    plain, negative, spelt = (
        made.image.tobytes()
        for made in draw(
            tiny_backbone, [replace(RECIPE, negative_prompt=text) for text in ("", "a {}", "a <toy>")], known
        )
    )
    assert plain != negative == spelt
    with pytest.raises(UserError, match=r"names \{(nobody|cat)\}"):
        list(draw(tiny_backbone, [replace(RECIPE, negative_prompt=wrong)], known))


def test_height_and_width_are_those_of_the_recipe(tiny_backbone: Backbone, concept: Concept) -> None:
    [made] = draw(tiny_backbone, [replace(RECIPE, height=32, width=64)], {"{}": concept.method})
    assert made.image.size == (64, 32)


def test_settings_reach_the_concepts_that_have_them(tiny_backbone: Backbone, concept: Concept) -> None:
    """Perfusion's beta and NeTI's key lock, in one call, and beside the image without any."""
    known: dict[str, Method] = {"{}": concept.method, "mug": make_perfusion(tiny_backbone).eval()}
    edited = replace(RECIPE, prompt="a {mug}")
    recipes = [
        *(replace(RECIPE, settings=settings) for settings in (None, {"key_lock": False}, {"key_lock": True})),
        *(replace(edited, settings=settings) for settings in (None, {"beta": 0.7}, {"beta": 0.1}, {"lock": "global"})),
    ]
    plain, off, locked, own, same, low, lock = (made.image.tobytes() for made in draw(tiny_backbone, recipes, known))
    assert plain == off != locked
    assert own == same and len({own, low, lock}) == 3
    with pytest.raises(UserError, match=r"setting beta: no concept in 'A photo of a \{\}' has it \(methods: neti\)"):
        list(draw(tiny_backbone, [replace(RECIPE, settings={"beta": 0.5})], known))
    with pytest.raises(UserError, match="tau"):
        list(draw(tiny_backbone, [replace(edited, settings={"tau": -1.0})], known))


def test_a_setting_is_the_same_through_attach_or_draw(tiny_backbone: Backbone, concept: Concept) -> None:
    """A view of a concept with other settings is a concept."""
    view = concept.method.drawn_with(key_lock=True)
    [setting] = draw(tiny_backbone, [replace(RECIPE, settings={"key_lock": True})], {"{}": concept.method})
    [by_view] = draw(tiny_backbone, [RECIPE], {"{}": view})
    assert setting.image.tobytes() == by_view.image.tobytes()
    assert not concept.method.settings.key_lock
