"""The public implementation's recordings, and this project's objects to compare with them."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from recordings import CASES, FOLDER, Recording, read_recording

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.concepts.public_code import load_reference_concept
from neti.models.methods import NeTI


@pytest.fixture(scope="session", params=CASES)
def recording(request: pytest.FixtureRequest) -> Recording:
    return read_recording(request.param)


@pytest.fixture
def concept(recording: Recording) -> Concept:
    """The recorded checkpoint, loaded afresh (eval mode: nested dropout off)."""
    folder = FOLDER / recording.facts["case"]
    return load_reference_concept(folder / "mapper-steps-7.pt", folder / "learned_embeds-steps-7.bin")


@pytest.fixture
def method(concept: Concept) -> NeTI:
    assert isinstance(concept.method, NeTI)
    return concept.method


@pytest.fixture(scope="session")
def reference_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small random Stable Diffusion (SD 1.4's topology and text width) that the recordings were made with."""
    root = tmp_path_factory.mktemp("reference")
    with tarfile.open(FOLDER / "tiny-sd.tar.xz") as archive:
        archive.extractall(root, filter="data")
    shutil.copytree(FOLDER.parent / "tokenizer", root / "tiny-sd" / "tokenizer")
    return root / "tiny-sd"


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
