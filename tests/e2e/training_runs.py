"""Small trainings for the tests: images, configurations, and runs in processes of their own."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import resource
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from neti.training.coach.launch import launch
from neti.training.config.run import RunConfig
from neti.utils.config.parsing import parse_config
from neti.utils.errors import exit_on_user_error

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
_FORK_SERVER = multiprocessing.get_context("forkserver")
_FORK_SERVER.set_forkserver_preload(["neti.training.coach.launch"])  # imports once, not once per process


def write_images(folder: Path, count: int = 3) -> Path:
    """`count` images of 64 px in a new folder."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def arguments(root: Path, backbone: Path, **changes: object) -> list[str]:
    """Arguments for four steps on the images in `root`/images; `changes` by key, with `__` for the dot."""
    settings: dict[str, object] = {
        "log__exp_name": "toy",
        "log__exp_dir": root / "runs",
        "log__save_steps": 2,
        "log__report_to": "none",
        "data__train_data_dir": root / "images",
        "data__placeholder_token": "<toy>",
        "data__super_category_token": "teddy",
        "data__resolution": 64,
        "data__dataloader_num_workers": 0,
        "model__pretrained_model_name_or_path": backbone,
        "eval__validation_prompts": "null",
        "optim__max_train_steps": 4,
        "optim__train_batch_size": 1,
        "optim__gradient_accumulation_steps": 2,
        "optim__seed": 7,
        "optim__device": "cpu",
        **changes,
    }
    return [word for key, value in settings.items() for word in (f"--{key.replace('__', '.')}", str(value))]


def make_config(root: Path, backbone: Path, **changes: object) -> RunConfig:
    return parse_config(RunConfig, arguments(root, backbone, **changes))


def tensors(root: Path, step: int, name: str = "toy") -> dict[str, Tensor]:
    """The tensors of a saved concept."""
    return load_file(root / "runs" / name / f"concept-steps-{step}.safetensors")


def assert_same_bits(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert torch.equal(actual[name], expected[name]), name


def start_process(
    config: RunConfig, largest_file: int | None = None, killed_before: int | None = None
) -> ForkServerProcess:
    """Start a training in a process of its own.

    largest_file: no file it writes may exceed these bytes. killed_before: the number, from 1, of the change to its run
    folder (a file moved to its place or removed, a folder made) right before which it gets SIGKILL.
    """
    process = _FORK_SERVER.Process(target=_train, args=(config, largest_file, killed_before))
    process.start()
    return process


def _train(config: RunConfig, largest_file: int | None, killed_before: int | None) -> None:
    torch.set_num_threads(1)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if killed_before is not None:
        changes = itertools.count(1)

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            is_change = event in ("os.rename", "os.remove", "os.mkdir")
            if is_change and str(config.log.run_dir) in str(arguments[0]) and next(changes) == killed_before:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
    sys.exit(exit_on_user_error(launch)(config))
