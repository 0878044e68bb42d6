"""A thousand images take no more memory than a few."""

from __future__ import annotations

import gc
from itertools import islice

import torch
from frames import created
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.generation.draw import draw
from neti.models.generation.recipes import ImageRecipe
from neti.models.methods import NeTI, NeTIConfig

RECIPES = [
    ImageRecipe(
        prompt="A photo of a {}",
        negative_prompt="",
        seed=seed,
        truncation=None,
        steps=1,
        guidance_scale=7.5,
        scheduler="ddim",
        base_model="tiny",
        base_revision=None,
        concept="sha256:0",
        placeholder="<toy>",
        torch_dtype="fp32",
        safety_checker=False,
    )
    for seed in range(1000)
]


def live_latents() -> int:
    """Latents [S,4,8,8] that anything still holds, each storage once."""
    found = {t.untyped_storage().data_ptr(): len(t) for t in gc.get_objects() if _is_latent(t)}
    return sum(found.values())


def _is_latent(thing: object) -> bool:
    return type(thing) is Tensor and thing.shape[1:] == (4, 8, 8)  # no FakeTensor: they hold no data


def test_latents_of_a_thousand_seeds_live_a_batch_at_a_time(tiny_backbone: Backbone) -> None:
    method = created(NeTI, NeTIConfig(), 16, tiny_backbone.word_embedding("toy")).eval()
    alive: list[int] = []
    encoded: list[int] = []
    tiny_backbone.unet.register_forward_pre_hook(lambda *_: alive.append(live_latents()))
    tiny_backbone.text_encoder.encoder.register_forward_pre_hook(
        lambda _, __, inputs: encoded.append(len(inputs["inputs_embeds"])), with_kwargs=True
    )
    before = live_latents()
    with torch.no_grad():
        made = list(islice(draw(tiny_backbone, RECIPES, {"{}": method}, batch_size=2), 10))
    assert [image.recipe.seed for image in made] == list(range(10))
    assert len(alive) == 5, "only the batches that were asked for"
    # for each of the two at work: its noise, its latents, and the U-Net's input twice; and the two just finished
    assert max(alive) - before <= 5 * 2
    assert alive[-1] == alive[1], "it does not grow from batch to batch"
    assert encoded == [16, 1], "all seeds share one conditioning: 16 layers of the one step, and the negative prompt"
