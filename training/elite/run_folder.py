"""Where one run keeps its files: as a concept's run does, with encoders in the place of concepts."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..coach.run_folder import RunFolder


class EncoderRun(RunFolder):
    """The files of one run, by name."""

    def encoder(self, step: int) -> Path:
        """The folder of the encoder after `step` optimizer steps."""
        return self.path / f"encoder-steps-{step}"

    def concepts(self) -> list[Path]:
        """The encoders that exist, in no particular order."""
        return list(self.path.glob("encoder-steps-*"))

    def rotate_states(self, keep: int | None) -> None:
        """Keep the newest training states and their encoders: one has as many bytes as a thousand concepts."""
        super().rotate_states(keep)
        kept = {self.encoder(int(path.stem.rpartition("-")[2])) for path in self.states()}
        for folder in set(self.concepts()) - kept:
            shutil.rmtree(folder)

    def clear(self) -> None:
        """Delete what a run writes, by name; anything else a user keeps in the folder stays."""
        for folder in self.concepts():
            shutil.rmtree(folder)
        super().clear()
