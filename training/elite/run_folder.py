"""Where one run keeps its files: as a concept's run does, with encoders in the place of concepts."""

from __future__ import annotations

from pathlib import Path

from ..coach.run_folder import RunFolder


class EncoderRun(RunFolder):
    """The files of one run, by name."""

    def concept(self, step: int) -> Path:
        """The encoder after `step` optimizer steps."""
        return self.path / f"encoder-steps-{step}.safetensors"

    def rotate_states(self, keep: int | None) -> None:
        """Keep the newest training states and their encoders: one of SD's has as many bytes as a hundred concepts."""
        super().rotate_states(keep)
        kept = {self.concept(int(path.stem.removeprefix("step-"))) for path in self.states()}
        for path in set(self.concepts()) - kept:
            path.unlink(missing_ok=True)
