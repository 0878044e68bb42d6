"""Fixtures: a tiny random backbone of real classes, with the topology of Stable Diffusion 1.x."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_backbone import build_tiny_backbone, stock_pipeline

from neti.models.backbone.backbone import Backbone


@pytest.fixture(scope="session")
def make_tiny_backbone() -> Callable[..., Backbone]:
    """`build_tiny_backbone`, for tests that need other shapes."""
    return build_tiny_backbone


@pytest.fixture
def tiny_backbone() -> Backbone:
    """A fresh tiny backbone (built in well under a second); the same weights every time."""
    return build_tiny_backbone()


@pytest.fixture(scope="session")
def tiny_backbone_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone as a folder in diffusers layout, for scripts that take a path. Read-only by agreement."""
    folder = tmp_path_factory.mktemp("tiny_backbone")
    tiny = build_tiny_backbone()
    stock_pipeline(tiny).save_pretrained(folder)
    return folder
