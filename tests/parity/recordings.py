"""What the public implementation computed, as recorded in `tests/data/reference` (see the README there)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

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
        difference = (selected.detach() - self[name]).abs().max().item()
        print(f"{name}: {difference:.1e}")
        return difference


def read_recording(case: str) -> Recording:
    with safe_open(FOLDER / f"{case}.safetensors", framework="pt") as file:
        facts = json.loads(file.metadata()["recording"])
        return Recording({name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118
