"""The project's own commands in processes of their own, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ....utils.errors import UserError
from .config import BenchmarkConfig

LAUNCHER = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCHER += ["--dynamo_backend", "no", "--main_process_port", "0"]


@dataclass(frozen=True)
class Commands:
    """scripts: the folder of train.py and inference.py. folder: where their results go."""

    config: BenchmarkConfig
    scripts: Path
    folder: Path

    def train(self, name: str, processes: int = 1, **changes: object) -> float:
        """Train on the miniature into folder/name, by `train_config` with these keys changed (`__` for the dot).

        Returns the moment (time.time) of the start.
        """
        settings: dict[str, object] = {
            "log__exp_name": name,
            "log__exp_dir": self.folder,
            "eval__validation_prompts": "null",
            "optim__device": self.config.device,
            **changes,
        }
        options = [word for key, value in settings.items() for word in (f"--{key.replace('__', '.')}", str(value))]
        launcher = [] if processes == 1 else [*LAUNCHER, "--num_processes", str(processes)]
        script = str(self.scripts / "train.py")
        return run([*launcher, script, "--config_path", str(self.config.train_config), *options])

    def infer(self, concept: Path, name: str, steps: int) -> float:
        """One image of a concept into folder/name; returns the moment of the start."""
        options = ["--concept", str(concept), "--inference_dir", str(self.folder / name), "--torch_dtype", "fp32"]
        options += ["--prompts", '["a photo of a {}"]', "--seeds", "0", "--num_denoising_steps", str(steps)]
        return run([str(self.scripts / "inference.py"), *options, "--device", self.config.device])

    def concept(self, name: str, step: int) -> Path:
        """The concept file that a training wrote."""
        return self.folder / name / f"concept-steps-{step}.safetensors"


def run(arguments: Sequence[str]) -> float:
    """Run Python with these arguments; returns the moment of its start. UserError with its last line if it fails."""
    began = time.time()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise UserError(f"{' '.join(arguments)[:200]}: failed with exit code {done.returncode}: {told}")
    return began
