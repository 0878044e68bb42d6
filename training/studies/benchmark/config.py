# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of `scripts/benchmark.py`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ....models.generation.config import Dtype
from ....utils.config.choices import Choice
from ....utils.config.parsing import Config
from ....utils.config.values import setting
from ....utils.devices import device_problems


class Subject(Choice):
    """What is measured: the bundled miniature, or Stable Diffusion v1.4's architecture with random weights."""

    miniature = "miniature"
    sd14 = "sd14"


class Section(Choice):
    """Groups of rows. arithmetic is about sd14, families sets SDXL beside it; startup and numerics run the
    miniature through the real commands."""

    arithmetic = "arithmetic"
    families = "families"
    training = "training"
    variants = "variants"
    sampling = "sampling"
    perfusion = "perfusion"
    serving = "serving"
    scaling = "scaling"
    memory = "memory"
    startup = "startup"
    numerics = "numerics"


@dataclass(frozen=True)
class BenchmarkConfig(Config):
    """One benchmark on one machine. The defaults suit a CPU."""

    # Results are kept as work_dir/NAME.json and make one chapter of the page; a name per machine and setting
    name: str = "cpu"
    # miniature, sd14 or both
    models: tuple[Subject, ...] = (Subject.miniature,)
    # Groups of rows: arithmetic, families, training, variants, sampling, perfusion,
    # serving, scaling, memory, startup, numerics
    sections: tuple[Section, ...] = tuple(Section)
    # Side of the images in pixels; unset: the model's own
    resolution: Optional[int] = setting(None, at_least=16, at_most=4096)
    # auto (CUDA, else MPS, else CPU), cpu, mps, cuda or cuda:N
    device: str = "auto"
    # fp32, fp16 or bf16: precision of the frozen models; memory is always measured in half precision on CUDA
    dtype: Dtype = Dtype.fp32
    # Samples of a training step
    batch: int = setting(8, at_least=1, at_most=1024)
    # Micro-batches that the same samples are cut into, for the row about gradient accumulation
    accumulation: int = setting(4, at_least=1)
    # Images made of one prompt
    seeds: int = setting(8, at_least=1, at_most=1024)
    # Requests of one image each, for the rows about serving; `seeds` of them are in progress at a time
    requests: int = setting(100, at_least=2, at_most=10_000)
    # Denoising steps per image; the ratios hardly depend on it
    sampling_steps: int = setting(10, at_least=2, at_most=1000)
    # Rounds in which the compared pieces of work take turns, after one that is not timed
    repeats: int = setting(3, at_least=1, at_most=1000)
    # Training steps in one timing; several on a GPU, so that the host may run ahead
    steps: int = setting(1, at_least=1, at_most=1000)
    # Batch sizes, numbers of seeds and of processes, for the rows about scaling
    batches: tuple[int, ...] = setting((1, 2, 4, 8), at_least=1, at_most=1024)
    seed_counts: tuple[int, ...] = setting((1, 2, 4, 8), at_least=1, at_most=1024)
    processes: tuple[int, ...] = setting((1, 2), at_least=1, at_most=64)
    # Training on the miniature, for what runs the real commands
    train_config: Path = Path("input_configs/train_miniature.yaml")
    # Results; a chapter stays on the page until its file here is deleted
    work_dir: Path = Path("outputs/benchmark")
    # The measured part of performance.md is written here, after every section
    docs_dir: Path = Path("docs")

    def problems(self) -> list[str]:
        """One line for each combination of values that makes no sense."""
        lines = device_problems("device", self.device)
        if self.batch % self.accumulation:
            lines.append(f"batch = {self.batch} must be a multiple of accumulation = {self.accumulation}")
        if self.resolution and self.resolution % 8:  # image side divided by latent side: 8 on sd14, 4 on the miniature
            lines.append(f"resolution = {self.resolution} must be a multiple of 8")
        if not self.name.replace("-", "_").isidentifier():
            lines.append(f"name = {self.name!r} names a file; use letters, digits, - and _")
        for key in ("models", "sections", "batches", "seed_counts", "processes"):
            if not getattr(self, key):
                lines.append(f"{key} is empty; leave it out for the default")
        return lines
