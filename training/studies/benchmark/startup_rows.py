"""Rows about waiting: from a command to its first result, and training on several processes."""

from __future__ import annotations

import time
from statistics import median

from ....models.backbone.backbone import Backbone
from ....utils.devices import pick_device
from .commands import Commands, run
from .config import BenchmarkConfig
from .rows import Row, seconds

LIBRARIES = (
    "import torch; from diffusers.models import AutoencoderKL, UNet2DConditionModel; "
    "from transformers import CLIPTextModel, CLIPTokenizer"
)
IMAGE_STEPS = 25
SHORT, LONG = 20, 40  # steps of the training whose pace is taken between two saves
BATCH = 4


def startup_rows(config: BenchmarkConfig, commands: Commands) -> list[Row]:
    """Seconds until the first training step's concept and the first image are on the disk, and what they are made of.

    The libraries' own imports and the weights are timed apart: the first in a process that does nothing else, the
    second in this one, where libraries and files are warm.
    """
    parts: dict[str, list[float]] = {"libraries": [], "weights": [], "step": [], "image": []}
    for number in range(config.repeats):
        began = run(["-c", LIBRARIES])
        parts["libraries"].append(time.time() - began)
        began = time.time()
        Backbone.from_pretrained("miniature", device=pick_device(config.device))
        parts["weights"].append(time.time() - began)
        name = f"first-{number}"
        began = commands.train(name, optim__max_train_steps=1)
        concept = commands.concept(name, 1)
        parts["step"].append(concept.stat().st_mtime - began)
        began = commands.infer(concept, f"image-{number}", IMAGE_STEPS)
        first = min(path.stat().st_mtime for path in (commands.folder / f"image-{number}").rglob("*.png"))
        parts["image"].append(first - began)
    took = {name: median(times) for name, times in parts.items()}
    libraries, weights = took["libraries"], took["weights"]
    loading = f"{seconds(libraries)} imports of PyTorch, diffusers and transformers, {seconds(weights)} weights"
    return [
        Row(
            f"from the command to {what}, beyond loading",
            seconds(took[name] - libraries - weights),
            wanted="under 3 s",
            note=f"{seconds(took[name])} in all, of which {loading}",
        )
        for name, what in (("step", "the first training step"), ("image", f"the first image ({IMAGE_STEPS} steps)"))
    ]


def process_rows(config: BenchmarkConfig, commands: Commands) -> list[Row]:
    """Samples per second by number of processes, each with a batch of its own; over gloo on a CPU."""
    rows = []
    for count in config.processes:
        name = f"processes-{count}"
        commands.train(
            name,
            count,
            log__save_steps=SHORT,
            optim__max_train_steps=LONG,
            optim__train_batch_size=BATCH,
            optim__gradient_accumulation_steps=1,
        )
        saved = [commands.concept(name, step).stat().st_mtime for step in (SHORT, LONG)]
        pace = (saved[1] - saved[0]) / (LONG - SHORT)
        what = f"training, batch {BATCH} on each of {count} process{'es' if count > 1 else ''}"
        rows.append(Row(what, f"{count * BATCH / pace:.3g} samples/s", note=f"{seconds(pace)} per step"))
    return rows
