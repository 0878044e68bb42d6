"""Perfusion concepts on the tiny backbone, which needs a covariance of its own; what they encode and predict."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_backbone import build_tiny_backbone
from torch import Tensor

from neti.models.attention.layers import Layer
from neti.models.attention.projection import join_projections
from neti.models.backbone.backbone import Backbone
from neti.models.backbone.denoiser import Denoiser
from neti.models.conditioning.conditioning import Conditioning, condition
from neti.models.conditioning.tokens import tokenize
from neti.models.methods import Method, Perfusion, Start, TextualInversion, WordVectorsConfig
from neti.models.methods.perfusion.config import PerfusionOptions
from neti.models.methods.perfusion.covariance import Covariance, probe
from neti.training.coach.objective import Batch

T0 = torch.tensor([500])
PROMPT = "a photo of a {} and a dog"


@cache
def tiny_covariance() -> str:
    """The path of a covariance file for the tiny backbone: some symmetric, positive matrix."""
    folder = Path(tempfile.mkdtemp())
    drawn = torch.randn(32, 128, generator=torch.Generator().manual_seed(5))
    covariance = Covariance(drawn @ drawn.T / 128 + 0.2 * torch.eye(32), probe(build_tiny_backbone().text))
    covariance.save(folder / "covariance.safetensors")
    return str(folder / "covariance.safetensors")


def make_perfusion(backbone: Backbone, word: str = "teddy", **options: Any) -> Perfusion:
    """A new concept, in train mode."""
    options.setdefault("covariance", tiny_covariance())
    start = Start(backbone.word_embedding(word, "mean"), word=word, backbone=backbone)
    return Perfusion.create(PerfusionOptions(**options), backbone.frame, start)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(backbone: Backbone, count: int = 2, seed: int = 1) -> Batch:
    draw = seeded(seed)
    return Batch(
        latents=torch.randn(count, 4, 8, 8, generator=draw),
        noise=torch.randn(count, 4, 8, 8, generator=draw),
        timesteps=torch.randint(1000, (count,), generator=draw),
        tokens=tokenize(backbone.tokenizer, ["a photo of a {}", "the {} on a table"] * (count // 2), ["{}"]),
        generators=[seeded(i) for i in range(count)],
    )


def encode(backbone: Backbone, concepts: dict[str, Method], prompt: str = PROMPT) -> Conditioning:
    tokens = tokenize(backbone.tokenizer, [prompt], list(concepts), required=False)
    vectors = {name: concept.vectors(T0) for name, concept in concepts.items()}
    with torch.no_grad():
        return condition(backbone.text, tokens, vectors, backbone.frame)


def denoise(backbone: Backbone, concepts: dict[str, Method], prompt: str = PROMPT) -> Tensor:
    projection = join_projections([concept.projection() for concept in concepts.values()])
    with torch.no_grad():
        return Denoiser(backbone, projection)(
            torch.randn(1, 4, 8, 8, generator=seeded(4)), T0, encode(backbone, concepts, prompt)
        )


def changed(concept: Perfusion, seed: int = 9) -> Perfusion:
    """The concept as if it had been trained: other values, another word, another key."""
    with torch.no_grad():
        for tensor in (concept.value_targets, concept.word, concept.key):
            tensor += 0.3 * tensor.std() * torch.randn(tensor.shape, generator=seeded(seed))
    return concept.eval()


def attention(backbone: Backbone, layer: Layer) -> Any:
    return backbone.unet.get_submodule(layer.path)


def textual_inversion(backbone: Backbone, word: Tensor) -> TextualInversion:
    return TextualInversion.create(WordVectorsConfig(), backbone.frame, Start(word.detach())).eval()
