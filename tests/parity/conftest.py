"""The backbone that the public implementation's recordings were made with; the recordings are fixtures of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import recordings

from neti.models.backbone.backbone import Backbone

recording, concept, method = recordings.recording, recordings.concept, recordings.method  # fixtures, by name
reference_folder = recordings.reference_folder


@pytest.fixture(scope="session")
def loaded_backbone(reference_folder: Path) -> Backbone:
    return Backbone.from_pretrained(str(reference_folder))


@pytest.fixture
def backbone(loaded_backbone: Backbone) -> Iterator[Backbone]:
    """The recordings' backbone; what a test changes in its U-Net is put back."""
    processors = loaded_backbone.unet.attn_processors
    yield loaded_backbone
    loaded_backbone.unet.set_attn_processor(dict(processors))
    loaded_backbone.unet.disable_gradient_checkpointing()
