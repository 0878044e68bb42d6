"""Perfusion's concept file, and the settings a concept is drawn with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from perfusion_concepts import (
    changed,
    denoise,
    make_perfusion,
    textual_inversion,
)

from neti.models.attention.layers import Layer
from neti.models.backbone.backbone import Backbone
from neti.models.backbone.frame import Frame
from neti.models.concepts.concept import Concept
from neti.models.concepts.embeddings import save_embedding
from neti.models.methods import Perfusion
from neti.models.methods.perfusion.config import PerfusionConfig
from neti.models.methods.perfusion.covariance import find_covariance
from neti.utils.errors import UserError


class TestTheConceptFile:
    def test_its_size_on_stable_diffusion_1(self) -> None:
        widths = [320] * 2 + [640] * 2 + [1280] * 6 + [640] * 3 + [320] * 3
        layers = tuple(Layer(i, f"layer {i}", "", 1, width, i) for i, width in enumerate(widths))
        tensors = Perfusion(PerfusionConfig(), Frame(layers, (768,), 77)).state_dict()
        assert sum(tensor.numel() * 4 for tensor in tensors.values()) == 105_984
        assert {name: tensor.numel() for name, tensor in tensors.items()} == {
            "word": 768,
            "key": 768,
            "key_targets": 12_480,
            "value_targets": 12_480,
        }

    def save(self, method: Perfusion, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
        """As a concept file with its covariance beside it, and nothing else to find it by."""
        assert method.covariance is not None
        method.covariance.save(folder / "covariance.safetensors")
        Concept(method, "<toy>", "teddy").save(folder / "toy.safetensors", dtype)
        return folder / "toy.safetensors"

    def test_it_gives_back_the_same_bits(self, tiny_backbone: Backbone, tmp_path: Path) -> None:
        method = changed(make_perfusion(tiny_backbone))
        loaded = Concept.load(self.save(method, tmp_path), backbone=tiny_backbone).method
        assert isinstance(loaded, Perfusion)
        assert replace(loaded.config, covariance=method.config.covariance) == method.config, "without the path"
        for name, tensor in method.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        assert torch.equal(denoise(tiny_backbone, {"{}": loaded}), denoise(tiny_backbone, {"{}": method}))

    def test_half_of_it_draws_nearly_the_same(self, tiny_backbone: Backbone, tmp_path: Path) -> None:
        method = changed(make_perfusion(tiny_backbone))
        loaded = Concept.load(self.save(method, tmp_path, torch.float16)).method
        full = denoise(tiny_backbone, {"{}": method})
        torch.testing.assert_close(denoise(tiny_backbone, {"{}": loaded}), full, atol=1e-2, rtol=0)

    def test_another_covariance_is_refused(self, tiny_backbone: Backbone, tmp_path: Path) -> None:
        method = make_perfusion(tiny_backbone).eval()
        path = self.save(method, tmp_path)
        covariance = method.covariance
        assert covariance is not None
        replace(covariance, matrix=covariance.matrix + torch.eye(32)).save(tmp_path / "covariance.safetensors")
        find_covariance.cache_clear()
        loaded = Concept.load(path).method
        with pytest.raises(UserError, match=r"is missing: there is only another one, covariance.safetensors"):
            loaded.projection()


def test_it_is_more_than_an_embedding(tiny_backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is an edit of the attention layers too; it cannot be exported"):
        save_embedding(Concept(make_perfusion(tiny_backbone).eval(), "<toy>", "teddy"), tmp_path / "toy.bin")
    assert not list(tmp_path.iterdir())


def test_settings_that_it_does_not_have_are_refused(tiny_backbone: Backbone) -> None:
    method = make_perfusion(tiny_backbone).eval()
    with pytest.raises(UserError, match="setting truncation: a concept of method 'perfusion' has beta, tau, lock"):
        method.drawn_with(truncation=3)
    with pytest.raises(UserError, match=r"tau = -1\.0: must be above 0"):
        method.drawn_with(tau=-1.0)
    with pytest.raises(UserError, match="'sideways' is not a valid Lock"):
        method.drawn_with(lock="sideways")
    other = textual_inversion(tiny_backbone, method.word)
    with pytest.raises(UserError, match="setting beta: a concept of method 'textual_inversion' has key_lock"):
        other.drawn_with(beta=0.5)
