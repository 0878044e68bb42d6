"""Several Perfusion concepts in one prompt, and beside concepts of other methods."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from perfusion_concepts import (
    attention,
    changed,
    denoise,
    encode,
    make_perfusion,
    seeded,
)

from neti.models.attention.projection import join_projections
from neti.models.backbone.backbone import Backbone
from neti.models.methods import Method, NeTI, NeTIConfig, Perfusion, Start
from neti.models.methods.perfusion.projection import PerfusionProjection
from neti.utils.errors import UserError


class TestSeveralConcepts:
    @pytest.fixture
    def two(self, tiny_backbone: Backbone) -> dict[str, Perfusion]:
        return {
            "{mug}": changed(make_perfusion(tiny_backbone), 1),
            "{cat}": changed(make_perfusion(tiny_backbone, word="cat"), 2).drawn_with(beta=0.6),
        }

    def test_two_in_one_prompt(self, tiny_backbone: Backbone, two: dict[str, Perfusion]) -> None:
        """Values of a layer against the definition: both keys projected out at once, each target behind a gate."""
        concepts: dict[str, Method] = {**two}
        text = encode(tiny_backbone, concepts, "a {mug} next to a {cat}")
        layer = tiny_backbone.frame.layers[9]
        module = attention(tiny_backbone, layer)
        projection = join_projections([concept.projection() for concept in two.values()])
        with torch.no_grad():
            _, v = projection.project(module, layer, text.keys[0], text.values[0], text.slots)  # type: ignore[arg-type]
        mug, cat = two.values()
        inverse = mug.covariance.inverse.double()  # type: ignore[union-attr]
        keys = torch.stack([mug.key, cat.key]).double()
        e, products = text.values[0].double(), keys @ inverse @ keys.T
        left = e - torch.linalg.solve(products, (e @ inverse @ keys.T).mT).mT @ keys
        expected = left @ module.to_v.weight.double().T
        for j, (concept, beta) in enumerate([(mug, 0.70), (cat, 0.6)]):
            s = e @ inverse @ keys[j] / products[j, j]
            gate = torch.sigmoid((s - beta) / 0.15)
            expected = expected + gate[..., None] * concept.target("value", layer).detach().double()
        torch.testing.assert_close(v.double(), expected, atol=5e-6, rtol=0)

    def test_the_order_in_the_prompt_does_not_matter(self, tiny_backbone: Backbone, two: dict[str, Perfusion]) -> None:
        prompt = "a {mug} next to a {cat}"
        forwards = denoise(tiny_backbone, {**two}, prompt)
        backwards = denoise(tiny_backbone, dict(reversed(two.items())), prompt)
        torch.testing.assert_close(forwards, backwards, atol=1e-5, rtol=0)

    def test_approx_is_another_projection(self, tiny_backbone: Backbone, two: dict[str, Perfusion]) -> None:
        prompt = "a {mug} next to a {cat}"
        approx: dict[str, Method] = {name: concept.drawn_with(overlap="approx") for name, concept in two.items()}
        assert not torch.allclose(denoise(tiny_backbone, approx, prompt), denoise(tiny_backbone, {**two}, prompt))

    @pytest.mark.parametrize("perfusion_first", [True, False])
    def test_beside_a_concept_of_another_method(
        self, tiny_backbone: Backbone, two: dict[str, Perfusion], perfusion_first: bool
    ) -> None:
        """A concept without a projection is a token like any other; the slots stay right."""
        embedding = tiny_backbone.word_embedding("cat")
        neti = NeTI.create(NeTIConfig(hidden_dim=8), tiny_backbone.frame, Start(embedding, seeded())).eval()
        pair: list[tuple[str, Method]] = [("{mug}", two["{mug}"]), ("{neti}", neti)]
        concepts = dict(pair if perfusion_first else reversed(pair))
        projection = join_projections([concept.projection() for concept in concepts.values()])
        assert isinstance(projection, PerfusionProjection)
        assert list(projection.concepts) == [1 if perfusion_first else 2]
        assert torch.isfinite(denoise(tiny_backbone, concepts, "a {mug} next to a {neti}")).all()

    def test_a_global_lock_beside_a_local_one(self, tiny_backbone: Backbone, two: dict[str, Perfusion]) -> None:
        """Keys: the global concept's token is its super category's, and only the local concept is edited into them."""
        concepts: dict[str, Method] = {"{mug}": two["{mug}"].drawn_with(lock="global"), "{cat}": two["{cat}"]}
        projection = join_projections([concept.projection() for concept in concepts.values()])
        assert isinstance(projection, PerfusionProjection)
        assert list(projection._editing["key"]) == [2] and list(projection._editing["value"]) == [1, 2]

    def test_what_cannot_be_one_edit_is_refused(
        self, tiny_backbone: Backbone, two: dict[str, Perfusion], tmp_path: Path
    ) -> None:
        mug, cat = two.values()

        def join(*concepts: Perfusion) -> None:
            join_projections([concept.projection() for concept in concepts])

        with pytest.raises(UserError, match="the same key: one Perfusion concept can stand in a prompt under one name"):
            join(mug, mug)
        residual = changed(make_perfusion(tiny_backbone, word="cat", gate_mode="residual"))
        with pytest.raises(UserError, match=r"differ in gate_mode \(paper and residual\)"):
            join(mug, residual)
        with pytest.raises(UserError, match="differ in edit_plain"):
            join(mug, cat.drawn_with(edit_plain=False))
        covariance = replace(mug.covariance, matrix=2 * mug.covariance.matrix)  # type: ignore[type-var, union-attr]
        covariance.save(tmp_path / "other.safetensors")  # type: ignore[union-attr]
        other = changed(make_perfusion(tiny_backbone, word="cat", covariance=str(tmp_path / "other.safetensors")))
        with pytest.raises(UserError, match="differ in covariance"):
            join(mug, other)
