"""Rows about the project's own commands, in processes of their own, as a user starts them: waiting and precision."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from ....models.backbone.backbone import Backbone
from ....models.generation.config import Dtype
from ....utils.devices import pick_device
from ....utils.errors import UserError
from ..timing import Ratio, Row, Timing, seconds
from .config import BenchmarkConfig

LAUNCHER = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
LAUNCHER += ["--dynamo_backend", "no", "--main_process_port", "0"]
IMPORTS = """
import time; began = time.perf_counter()
import accelerate, torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDPMScheduler
from transformers import CLIPTextModel, CLIPTokenizer
libraries = time.perf_counter()
from neti.training.coach import launch
print(libraries - began, time.perf_counter() - libraries)
"""  # of a training: seconds of the libraries, and of the project's own modules after them
HELPED = ("train", "inference")  # the scripts whose --help is timed
IMAGE_STEPS = 25
SHORT, LONG = 20, 40  # steps of the training whose pace is taken between two saves
BATCH = 4
STEPS, LAST = 50, 10  # of the trainings whose losses are compared; the last ones are averaged


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
        return run([*launcher, script, "--config_path", str(self.config.train_config), *options])[0]

    def training_pace(self, name: str, processes: int = 1) -> float:
        """Seconds of a training step of BATCH, between the saves of steps SHORT and LONG."""
        self.train(
            name,
            processes,
            log__save_steps=SHORT,
            optim__max_train_steps=LONG,
            optim__train_batch_size=BATCH,
            optim__gradient_accumulation_steps=1,
        )
        saved = [self.concept(name, step).stat().st_mtime for step in (SHORT, LONG)]
        return (saved[1] - saved[0]) / (LONG - SHORT)

    def infer(self, concept: Path, name: str, seeds: str = "0", dtype: Dtype = Dtype.fp32) -> float:
        """Images of a concept into folder/name; returns the moment of the start."""
        options = ["--concept", str(concept), "--inference_dir", str(self.folder / name), "--torch_dtype", dtype.value]
        options += ["--prompts", '["a photo of a {}"]', "--seeds", seeds, "--num_denoising_steps", str(IMAGE_STEPS)]
        options += ["--device", self.config.device]
        return run([str(self.scripts / "inference.py"), *options])[0]

    def concept(self, name: str, step: int) -> Path:
        """The concept file that a training wrote."""
        return self.folder / name / f"concept-steps-{step}.safetensors"

    def images(self, name: str) -> list[Path]:
        """The images that `infer` wrote, by seed."""
        return sorted((self.folder / name).glob("*/[0-9]*.png"))


def run(arguments: Sequence[str]) -> tuple[float, str]:
    """Run Python with these arguments; returns the moment of its start and what it printed.

    UserError with its last line if it fails.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    began = time.time()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise UserError(f"{' '.join(arguments)[:200]}: failed with exit code {done.returncode}: {last}")
    return began, done.stdout


def elapsed(arguments: Sequence[str]) -> float:
    """Seconds until Python has run with these arguments and is gone."""
    began, _ = run(arguments)
    return time.time() - began


def startup_rows(config: BenchmarkConfig, commands: Commands) -> list[Row]:
    """How long commands take before they do anything, and until the first training step and image are on the disk."""
    device = pick_device(config.device)
    took: dict[str, list[float]] = {}

    def note(what: str, value: float) -> None:
        took.setdefault(what, []).append(value)

    for number in range(config.repeats):
        note("torch", elapsed(["-c", "import torch"]))
        for name in HELPED:
            note(name, elapsed([str(commands.scripts / f"{name}.py"), "--help"]))
        libraries, own = map(float, run(["-c", IMPORTS])[1].split())
        note("libraries", libraries)
        note("own", own)
        began = time.time()
        Backbone.from_pretrained("miniature", device=device)
        note("weights", time.time() - began)
        began = commands.train(f"first-{number}", optim__max_train_steps=1)
        concept = commands.concept(f"first-{number}", 1)
        note("the first training step", concept.stat().st_mtime - began)
        began = commands.infer(concept, f"image-{number}")
        note(f"the first image ({IMAGE_STEPS} steps)", commands.images(f"image-{number}")[0].stat().st_mtime - began)
    found = {what: Timing(tuple(times), 0) for what, times in took.items()}
    loading = {"imports of PyTorch, diffusers and transformers": "libraries", "weights": "weights"}
    parts = ", ".join(f"{seconds(found[key].median)} {name}" for name, key in loading.items())
    rows = [
        Row(
            f"{name}.py --help / import torch",
            str(Ratio.of(found[name], found["torch"])),
            wanted="at most 1.5",
            note=f"{seconds(found[name].median)} / {seconds(found['torch'].median)}",
        )
        for name in HELPED
    ]
    rows.append(
        Row(
            "imports of a training, beyond its libraries'",
            seconds(found["own"].median),
            note=f"{seconds(found['libraries'].median)} PyTorch, diffusers, transformers and accelerate",
        )
    )
    for what in list(found)[-2:]:
        beyond = found[what].median - sum(found[key].median for key in loading.values())
        aside = f"{seconds(found[what].median)} in all, of which {parts}"
        rows.append(Row(f"from the command to {what}, beyond loading", seconds(beyond), wanted="under 3 s", note=aside))
    return rows


def process_rows(config: BenchmarkConfig, commands: Commands) -> list[Row]:
    """Samples per second by number of processes, each with a batch of its own; over gloo on a CPU."""
    rows = []
    for count in config.processes:
        pace = commands.training_pace(f"processes-{count}", count)
        what = f"training, batch {BATCH} on each of {count} process{'es' if count > 1 else ''}"
        rows.append(Row(what, f"{count * BATCH / pace:.3g} samples/s", note=f"{seconds(pace)} per step"))
    return rows


def numerics_rows(config: BenchmarkConfig, commands: Commands) -> list[Row]:
    """The same training in each precision; then the float32 concept drawn in each precision, and the reverse."""
    halves = (Dtype.bf16,) if pick_device(config.device).type == "cpu" else (Dtype.bf16, Dtype.fp16)
    exact = _losses(commands, Dtype.fp32)
    reference = _drawn(commands, Dtype.fp32, Dtype.fp32)
    others = f"mean over pixels; different seeds: {_apart(reference, reference[::-1])}"
    rows = []
    for dtype in halves:
        rounded = _losses(commands, dtype)
        learned = load_file(commands.concept(f"in-{dtype}", STEPS))
        kept = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in learned.values()})
        worst = np.abs(np.subtract(rounded, exact)).max()
        rows += [
            Row(
                f"training in {dtype}: loss of step 1, and mean of the last {LAST} of {STEPS}",
                f"{rounded[0]:.4f}, {np.mean(rounded[-LAST:]):.4f}",
                wanted=f"as in fp32: {exact[0]:.4f}, {np.mean(exact[-LAST:]):.4f}",
                note=f"steps at most {worst:.4f} apart; {sum(map(math.isfinite, rounded))} of {STEPS} losses finite; "
                f"the concept's tensors are {', '.join(kept)}",
            ),
            Row(
                f"images of the fp32 concept drawn in {dtype}, beside fp32",
                f"{_apart(_drawn(commands, Dtype.fp32, dtype), reference)} of 255 apart per value",
                note=others,
            ),
            Row(
                f"images of the concept learned in {dtype}, drawn in fp32, beside the fp32 concept's",
                f"{_apart(_drawn(commands, dtype, Dtype.fp32), reference)} of 255 apart per value",
            ),
        ]
    return rows


def _losses(commands: Commands, dtype: Dtype) -> list[float]:
    """Of every step of a training in this precision."""
    name = f"in-{dtype}"
    steps = {"optim__max_train_steps": STEPS, "log__save_steps": STEPS, "optim__train_batch_size": 2}
    commands.train(name, optim__mixed_precision="no" if dtype is Dtype.fp32 else dtype.value, **steps)
    lines = (commands.folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def _drawn(commands: Commands, learned_in: Dtype, drawn_in: Dtype) -> np.ndarray:
    """Four images [4,H,W,3] of the concept that was learned in one precision, drawn in another."""
    name = f"{learned_in}-in-{drawn_in}"
    commands.infer(commands.concept(f"in-{learned_in}", STEPS), name, "0-3", drawn_in)
    return np.stack([np.asarray(Image.open(path), dtype=np.float64) for path in commands.images(name)])


def _apart(one: np.ndarray, other: np.ndarray) -> str:
    return f"{np.abs(one - other).mean():.2f}"
