"""Tests that need a CUDA device, and are skipped without one: `make gpu` runs them.

With NETI_REHEARSE=1 they run on the CPU on a tiny model instead, as far as that is possible: a test of the tests.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "parity"))
import recordings

from neti.models.backbone.backbone import Backbone
from neti.training.studies.random_weights import sd14
from neti.utils.devices import allow_tf32

recording, concept, method = recordings.recording, recordings.concept, recordings.method  # fixtures, by name
reference_folder = recordings.reference_folder
HERE = Path(__file__).parent
ON_GPU = torch.cuda.is_available()
REHEARSAL = os.environ.get("NETI_REHEARSE") == "1" and not ON_GPU


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("gpu")
            if not ON_GPU and (not REHEARSAL or item.get_closest_marker("cuda_only")):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture(autouse=True)
def exact_and_empty() -> Iterator[None]:
    """No TF32; what a test leaves on the device does not count for the next."""
    allow_tf32(False)
    yield
    if ON_GPU:
        torch.cuda.empty_cache()


@pytest.fixture
def make_backbone(device: torch.device, make_tiny_backbone: Callable[..., Backbone]) -> Callable[..., Backbone]:
    """Stable Diffusion v1.4's architecture with random weights; in a rehearsal the tiny model."""

    def make(dtype: torch.dtype) -> Backbone:
        return sd14(device, dtype) if ON_GPU else make_tiny_backbone().to(device, dtype)

    return make
