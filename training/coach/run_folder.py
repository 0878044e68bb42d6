"""Where one run keeps its files: the only place that knows their names.

```
{exp_dir}/{exp_name}/
    config.yaml                      the configuration exactly as it was given
    derived.json                     what was computed from it: scaled learning rate, target norm, seed, ...
    concept-steps-{N}.safetensors    the concept after N optimizer steps
    checkpoints/step-{N}.pt          everything a resume needs
    validation/step-{N}.png          labelled grids, one per chosen truncation
    metrics.jsonl, logs/             the loss curve, for programs and for people
```
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path


class RunFolder:
    """The files of one run, by name."""

    def __init__(self, path: Path, boards: Path) -> None:
        self.path = path
        self.boards = boards
        self.config = path / "config.yaml"
        self.derived = path / "derived.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.states_folder = path / "checkpoints"
        self.validation_folder = path / "validation"

    def concept(self, step: int) -> Path:
        """The concept after `step` optimizer steps; `scripts/inference.py` finds it by `input_dir` and `iteration`."""
        return self.path / f"concept-steps-{step}.safetensors"

    def state(self, step: int) -> Path:
        """The training state after `step` optimizer steps."""
        return self.states_folder / f"step-{step}.pt"

    def validation(self, step: int, truncation: int | None) -> Path:
        """The validation grid after `step` optimizer steps, with all (None) or the first `truncation` hidden units."""
        suffix = "" if truncation is None else f"-truncation-{truncation}"
        return self.validation_folder / f"step-{step}{suffix}.png"

    def states(self) -> list[Path]:
        """The training states that exist, oldest first."""
        found = {}
        for path in self.states_folder.glob("step-*.pt"):
            if match := re.fullmatch(r"step-(\d+)\.pt", path.name):
                found[int(match[1])] = path
        return [found[step] for step in sorted(found)]

    def rotate_states(self, keep: int | None) -> None:
        """Delete the oldest training states so that at most `keep` remain (None: all). Concepts are not touched."""
        if keep is not None:
            for path in self.states()[:-keep]:
                path.unlink(missing_ok=True)

    def is_empty(self) -> bool:
        """Whether nothing is there that a new run could destroy; half-written files do not count."""
        return not self.path.exists() or all(_is_leftover(path) for path in self.path.iterdir())

    def is_fresh(self) -> bool:
        """Whether the folder holds at most what a run writes before its first save."""
        return self.is_empty() or (self.derived.exists() and not self.concepts())

    def concepts(self) -> list[Path]:
        """The concept files that exist, in no particular order."""
        return list(self.path.glob("concept-steps-*.safetensors"))

    def clear(self) -> None:
        """Delete what a run writes, by name; anything else a user keeps in the folder stays."""
        boards = [self.boards] if self.path in self.boards.parents else []
        for folder in (self.states_folder, self.validation_folder, *boards):
            shutil.rmtree(folder, ignore_errors=True)
        for path in (self.config, self.derived, self.metrics, *self.concepts()):
            path.unlink(missing_ok=True)

    def remove_leftovers(self) -> None:
        """Delete the half-written files of a killed run (see `write_atomically`)."""
        for folder in (self.path, self.states_folder, self.validation_folder):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)


def _is_leftover(path: Path) -> bool:
    return path.name.startswith(".") and path.suffix == ".tmp"
