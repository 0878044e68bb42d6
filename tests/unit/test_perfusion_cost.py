"""What Perfusion computes how often: the text once per prompt, W i* once per layer, whatever the number of steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from perfusion_concepts import attention, changed, make_batch, make_perfusion
from torch import nn

from neti.models.backbone.backbone import Backbone
from neti.models.generation.draw import draw
from neti.models.generation.recipes import ImageRecipe
from neti.training.coach.objective import Objective

RECIPES = [ImageRecipe("a photo of a {}", seed=seed, steps=5) for seed in (1, 2)]


@pytest.fixture
def calls(tiny_backbone: Backbone) -> Counter[str]:
    """How often what ran: "text", and by each layer "encodings" [B,T,D] and "key" [J,D]."""
    counted: Counter[str] = Counter()

    def counting(name: Callable[[Any], str]) -> Callable[[nn.Module, Any], None]:
        return lambda _, args: counted.update([name(args)])

    [first] = [m for name, m in tiny_backbone.text_encoder.named_modules() if name.endswith("layers.0")]
    first.register_forward_pre_hook(counting(lambda _: "text"))
    for layer in tiny_backbone.frame.layers:
        for linear in (attention(tiny_backbone, layer).to_k, attention(tiny_backbone, layer).to_v):
            linear.register_forward_pre_hook(counting(lambda args: "key" if args[0].dim() == 2 else "encodings"))
    return counted


def test_a_picture_encodes_its_text_once_and_projects_the_key_once_per_layer(
    tiny_backbone: Backbone, calls: Counter[str]
) -> None:
    concept = changed(make_perfusion(tiny_backbone))
    calls.clear()  # a new concept reads the super category
    assert len(list(draw(tiny_backbone, RECIPES, {"{}": concept}))) == 2
    assert calls == {"text": 2, "key": 32, "encodings": 5 * 32}, "the prompt and the empty one; keys and values"


def test_the_global_lock_reads_one_text_more(tiny_backbone: Backbone, calls: Counter[str]) -> None:
    concept = changed(make_perfusion(tiny_backbone)).drawn_with(lock="global")
    calls.clear()
    list(draw(tiny_backbone, RECIPES, {"{}": concept}))
    assert calls == {"text": 3, "key": 16, "encodings": 5 * 32}, "its keys are not edited"


def test_a_training_step_encodes_its_texts_once(tiny_backbone: Backbone, calls: Counter[str]) -> None:
    objective = Objective(make_perfusion(tiny_backbone).train(), tiny_backbone)
    calls.clear()
    objective(make_batch(tiny_backbone)).backward()
    assert calls == {"text": 1, "key": 32, "encodings": 32}
