"""`model.key_lock`: NeTI, XTI and Textual Inversion trained with keys of the super-category word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.approximation import what_varies
from neti.models.concepts.concept import Concept
from neti.models.conditioning.composition import Mixture, Rule
from neti.models.conditioning.conditioning import Conditioning, condition, plain_condition
from neti.models.conditioning.tokens import tokenize
from neti.models.methods import METHODS, Method, Start
from neti.training.coach.objective import Batch, Objective
from neti.training.coach.plan import method_config
from neti.training.config.options import MethodName
from neti.training.config.run import ModelConfig
from neti.utils.errors import UserError

WORDS = ["neti", "xti", "textual_inversion"]
PROMPT = "a photo of a {} and a dog"


def trained(backbone: Backbone, name: str, key_lock: bool = True) -> Method:
    """A new concept, as a training of `model.key_lock` makes it."""
    config = method_config(ModelConfig(method=MethodName(name), key_lock=key_lock))
    word = backbone.word_embedding("teddy", "mean")
    start = Start(word, torch.Generator().manual_seed(0), word="teddy")
    method = METHODS[name].create(config, backbone.frame, start)
    with torch.no_grad():
        for parameter in method.parameters():  # away from the super category, where word vectors start
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return method


def encode(backbone: Backbone, method: Method) -> Conditioning:
    tokens = tokenize(backbone.tokenizer, [PROMPT], ["{}"])
    with torch.no_grad():
        return condition(backbone.text, tokens, {"{}": method.vectors(torch.tensor([500]))}, backbone.frame)


@pytest.mark.parametrize("name", WORDS)
def test_keys_are_the_super_categorys_and_values_the_concepts(tiny_backbone: Backbone, name: str) -> None:
    made = encode(tiny_backbone, trained(tiny_backbone, name).eval())
    word = plain_condition(tiny_backbone.text, [PROMPT.replace("{}", "teddy")], tiny_backbone.frame)
    torch.testing.assert_close(made.keys, word.keys)
    unlocked = encode(tiny_backbone, trained(tiny_backbone, name, key_lock=False).eval())
    assert torch.equal(made.values, unlocked.values)
    assert not torch.allclose(made.keys, unlocked.keys)


@pytest.mark.parametrize("name", WORDS)
def test_training_learns_through_the_values_alone(tiny_backbone: Backbone, name: str) -> None:
    """The loss is that of the locked keys, and its gradient that of the values: the keys have none."""
    draw = torch.Generator().manual_seed(3)
    batch = Batch(
        latents=torch.randn(1, 4, 8, 8, generator=draw),
        noise=torch.randn(1, 4, 8, 8, generator=draw),
        timesteps=torch.tensor([400]),
        tokens=tokenize(tiny_backbone.tokenizer, [PROMPT], ["{}"]),
        generators=[torch.Generator().manual_seed(0)],
    )
    losses = {}
    for lock in (True, False):
        method = trained(tiny_backbone, name, lock).train()
        objective = Objective(method, tiny_backbone)
        seen: list[Tensor] = []
        observed = method.observe

        def observe(conditioning: Conditioning, seen: list[Any] = seen, observed: Any = observed) -> None:
            seen.append(conditioning.keys)
            observed(conditioning)

        method.observe = observe  # type: ignore[method-assign]
        loss = objective(batch)
        loss.backward()
        assert seen[0].requires_grad != lock
        assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
        losses[lock] = loss.item()
    assert losses[True] != losses[False]


@pytest.mark.parametrize("name", WORDS)
def test_the_concept_knows_it_and_can_be_drawn_otherwise(tiny_backbone: Backbone, name: str, tmp_path: Path) -> None:
    method = trained(tiny_backbone, name)
    Concept(method, "<toy>", "teddy").save(tmp_path / "toy.safetensors")
    loaded = Concept.load(tmp_path / "toy.safetensors", backbone=tiny_backbone).method
    assert loaded.key_word == "teddy", "without being asked"
    assert torch.equal(encode(tiny_backbone, loaded).keys, encode(tiny_backbone, method.eval()).keys)
    assert loaded.drawn_with(key_lock=False).key_word is None
    plain = Concept(trained(tiny_backbone, name, key_lock=False), "<toy>", "teddy").method
    assert plain.key_word is None and plain.drawn_with(key_lock=True).key_word == "teddy"


def test_concepts_that_take_turns_keep_the_lock(tiny_backbone: Backbone) -> None:
    locked, other = (trained(tiny_backbone, "xti").eval() for _ in range(2))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.2)
    taking_turns = Mixture([Rule(locked), Rule(other, timesteps=(0, 400))])
    assert taking_turns.vectors(torch.tensor([500, 300])).key_words == "teddy"
    with pytest.raises(UserError, match=r"from the same word \(key_lock\), not from teddy, the concept itself"):
        Mixture([Rule(locked), Rule(other.drawn_with(key_lock=False))])


def test_no_embedding_can_tell_it(tiny_backbone: Backbone) -> None:
    concept = Concept(trained(tiny_backbone, "textual_inversion").eval(), "<toy>", "teddy")
    with pytest.raises(UserError, match=r"keys come from 'teddy' \(key_lock\), which no embedding can tell"):
        what_varies(concept)


def test_perfusion_has_its_own_lock() -> None:
    [problem] = ModelConfig(method=MethodName.perfusion, key_lock=True).problems()
    assert problem == ("model.method = perfusion locks keys as model.perfusion.lock says; leave out model.key_lock")
