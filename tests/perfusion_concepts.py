"""Perfusion concepts on the tiny backbone, which needs a covariance of its own."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tiny_backbone import build_tiny_backbone

from neti.models.backbone.backbone import Backbone
from neti.models.methods import Perfusion, Start
from neti.models.methods.perfusion.config import PerfusionOptions
from neti.models.methods.perfusion.covariance import Covariance, probe


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
