"""What the public implementation computed, as recorded in `tests/data/reference` (see the README there)."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

from neti.models.concepts.concept import Concept
from neti.models.concepts.public_code import load_reference_concept
from neti.models.methods import NeTI

FOLDER = Path(__file__).parent.parent / "data" / "reference"
CASES = ("default", "nobypass", "nope")


@dataclass(frozen=True)
class Recording:
    """One recorded case. `facts`: its scalars and prompts; `selection`: which entries of a tensor are kept here."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def entries(self, name: str) -> tuple[slice, ...]:
        """Index of the entries of the full tensor that the recording of `name` holds."""
        return tuple(slice(*bounds) for bounds in self.facts["selection"].get(name, []))

    def compare(self, name: str, actual: Tensor) -> float:
        """Largest absolute difference between the recording and the same entries of the full tensor `actual`.

        Also printed: `pytest tests/parity -rA` shows what was found.
        """
        selected = actual[self.entries(name)]
        assert selected.shape == self[name].shape, name
        difference = (selected.detach().cpu() - self[name]).abs().max().item()
        print(f"{name}: {difference:.1e}")
        return difference


def read_recording(case: str) -> Recording:
    with safe_open(FOLDER / f"{case}.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["recording"])
        return Recording({name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118


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
