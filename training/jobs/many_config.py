# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Every setting of `scripts/train_many.py`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from ...utils.config.parsing import Config
from ...utils.config.values import setting
from ...utils.devices import device_problems
from .config import JobsConfig

NAME = "{name}"  # in `placeholder`


@dataclass(frozen=True)
class ManyConfig(Config):
    """Many concepts, one training for each."""

    # The training that all concepts share: a YAML file of scripts/train.py
    train_config: Path
    # A folder with one folder of images for each concept, or a CSV file with the columns name and folder, and others as
    # needed: super_category, placeholder, or keys of a training such as optim.max_train_steps
    concepts: Path
    # Where concepts/<name>.safetensors, table.csv and everything else go
    output_dir: Path = Path("./outputs/many")
    # The super-category word of concepts that have none in the CSV; unset: that of train_config
    super_category: Optional[str] = None
    # The new word for each concept that has none in the CSV; {name} stands for its name
    placeholder: str = "<{name}>"
    # auto (CUDA, else MPS, else CPU; with several workers each takes a GPU of its own), cpu, mps, cuda or cuda:N
    device: str = "auto"
    # What a training step is expected to take, for the estimate as long as none was timed
    seconds_per_step: float = setting(0.35, above=0)
    # Check everything, print the size of the plan, train nothing
    dry_run: bool = False
    # Where the trainings run: processes on this machine, or a Ray cluster
    jobs: JobsConfig = field(default_factory=JobsConfig)

    def problems(self) -> list[str]:
        lines = device_problems("device", self.device)
        if NAME not in self.placeholder:
            lines.append(f"placeholder = {self.placeholder!r} has no {NAME}; concepts must have words of their own")
        return lines
