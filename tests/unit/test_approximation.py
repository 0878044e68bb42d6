"""Forcing a concept into ordinary embeddings, and measuring what that costs."""

from __future__ import annotations

import pytest
import torch
from frames import created

from neti.models.attention.layers import cross_attention_layers
from neti.models.backbone.backbone import Backbone
from neti.models.concepts.approximation import TIMESTEPS, layer_embeddings, mean_embedding, measure_losses, what_varies
from neti.models.concepts.concept import Concept
from neti.models.methods import XTI, NeTI, NeTIConfig, WordVectorsConfig
from neti.utils.errors import UserError

D = 32


def make_neti(**settings: object) -> Concept:
    generator = torch.Generator().manual_seed(0)
    method = created(NeTI, NeTIConfig(**settings), 16, torch.full((D,), 0.02), generator)
    return Concept(method.eval(), "<toy>", "teddy", {"base_model": "tiny"})


def make_xti(words: torch.Tensor) -> Concept:
    method = created(XTI, WordVectorsConfig(), 16, torch.zeros(D))
    with torch.no_grad():
        method.words.copy_(words[:, None])
    return Concept(method.eval(), "<toy>", "teddy", {"base_model": "tiny"})


def test_one_vector_is_the_mean_over_the_layers() -> None:
    concept = make_neti()
    words = concept.method.vectors(torch.tensor([300])).words[:, 0]
    embedding = mean_embedding(concept, 300)
    assert torch.equal(embedding.method.vectors(torch.tensor([0])).words[0, 0], words.mean(dim=0))
    assert (embedding.placeholder, embedding.super_category, embedding.metadata) == ("<toy>", "teddy", concept.metadata)
    assert not torch.equal(mean_embedding(concept, 400).method.words, embedding.method.words)


@pytest.mark.parametrize(("placeholder", "token"), [("<toy>", "<toy-MID>"), ("toy", "toy-MID")])
def test_each_layer_has_its_own_vector_and_word(tiny_backbone: Backbone, placeholder: str, token: str) -> None:
    concept = make_neti()
    concept.placeholder = placeholder
    words = concept.method.vectors(torch.tensor([300])).words[:, 0]
    names = [layer.name for layer in cross_attention_layers(tiny_backbone.unet)]
    embeddings = layer_embeddings(concept, 300, names)
    assert list(embeddings) == names
    assert embeddings["MID"].placeholder == token
    for name, vector in zip(names, words, strict=True):
        assert torch.equal(embeddings[name].method.vectors(torch.tensor([0])).words[0, 0], vector)


def test_what_varies_is_known_from_the_concept_itself() -> None:
    assert what_varies(make_neti()) == (True, True)
    assert what_varies(make_neti(use_time=False)) == (True, False)
    assert what_varies(make_neti(use_layer=False)) == (False, True)
    assert what_varies(make_xti(torch.zeros(16, D))) == (True, False)
    assert what_varies(mean_embedding(make_neti(), 0)) == (False, False)


def test_losses_are_told_step_by_step(tiny_backbone: Backbone) -> None:
    losses = measure_losses(tiny_backbone, make_neti(), 500, one_vector=True)
    assert list(losses) == ["without the textual bypass", "held at timestep 500", "one vector for all layers"]
    for loss in losses.values():
        assert tuple(loss.by_timestep) == TIMESTEPS
        assert min(loss.by_timestep.values()) <= loss.overall <= max(loss.by_timestep.values())


def test_where_nothing_is_given_up_nothing_is_lost(tiny_backbone: Backbone) -> None:
    losses = measure_losses(tiny_backbone, make_neti(output_bypass=False), 700, one_vector=False)
    assert list(losses) == ["held at timestep 700"]
    held = losses["held at timestep 700"].by_timestep
    assert held[700] < 1e-3 < 0.05 < min(held[t] for t in TIMESTEPS if t != 700)
    assert measure_losses(tiny_backbone, make_xti(torch.zeros(16, D)), 0, one_vector=False) == {}


def test_the_plain_word_is_one_away(tiny_backbone: Backbone) -> None:
    """A concept whose layers scatter around the word, so that their mean is the word itself."""
    word = tiny_backbone.word_embedding("teddy")
    sign = torch.tensor([1.0, -1.0] * 8)[:, None]
    scattered = make_xti(word + 0.05 * sign * torch.randn(D, generator=torch.Generator().manual_seed(0)))
    losses = measure_losses(tiny_backbone, scattered, 0, one_vector=True)
    assert measure_losses(tiny_backbone, scattered, 0, one_vector=True) == losses, "the same every time"
    [loss] = losses.values()
    assert loss.overall == pytest.approx(1, abs=1e-3)
    assert list(loss.by_timestep.values()) == pytest.approx([1] * len(TIMESTEPS), abs=1e-3)


def test_what_does_not_fit_is_refused(tiny_backbone: Backbone) -> None:
    for timestep in (-1, 1000):
        with pytest.raises(UserError, match=r"must lie in 0..999"):
            mean_embedding(make_neti(), timestep)
    narrow = created(NeTI, NeTIConfig(), 16, torch.ones(8)).eval()
    with pytest.raises(UserError, match="text width 8"):
        measure_losses(tiny_backbone, Concept(narrow, "<toy>", "teddy"), 0, one_vector=True)
