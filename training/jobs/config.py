# ruff: noqa: UP045  (pyrallis 0.3.1 knows Optional[X] but not X | None, and no postponed annotations)
"""Where many jobs run: the group `jobs` of every script that does some."""

import os
from dataclasses import dataclass
from typing import Optional

from ...utils.config.parsing import Config
from ...utils.config.values import setting
from ...utils.errors import UserError
from .cluster import RayPool
from .pools import Pool, ProcessPool
from .worker import MakeWork


@dataclass(frozen=True)
class JobsConfig(Config):
    """Workers: processes on this machine, or actors on a Ray cluster."""

    # Workers at a time; unset: one for each GPU (times workers_per_gpu), without GPUs one; on Ray as many as fit
    workers: Optional[int] = setting(None, at_least=1, at_most=10_000)
    # Workers that share a GPU
    workers_per_gpu: int = setting(1, at_least=1, at_most=64)
    # CPU cores of each worker; unset: its share of this machine's, on Ray 1
    cpus_per_worker: Optional[int] = setting(None, at_least=1)
    # Times that a job is tried whose worker dies, or that fails for a reason that may pass
    attempts: int = setting(3, at_least=1, at_most=100)
    # Address of a Ray cluster, or auto for the one this machine belongs to, or local; unset: processes, without Ray
    ray: Optional[str] = None


def open_pool(config: JobsConfig, device: str, make: MakeWork) -> Pool:
    """The workers that `config` asks for. device: the script's own option; `auto` takes GPUs where there are some.

    Raises UserError for a cluster that is not there, and when a launcher has started several of this process.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("start this script once, without a launcher; jobs.workers says how many processes do the work")
    if config.ray is not None:
        gpus = 0.0 if device == "cpu" else 1 / config.workers_per_gpu
        cpus = config.cpus_per_worker or 1
        return RayPool(make, address=config.ray, size=config.workers, cpus=cpus, gpus=gpus)
    devices = _devices(config, device)
    threads = config.cpus_per_worker or max((os.cpu_count() or 1) // len(devices), 1)
    return ProcessPool(make, devices, threads)


def _devices(config: JobsConfig, device: str) -> list[str]:
    """One device for each worker on this machine."""
    import torch  # takes seconds

    gpus = torch.cuda.device_count() if device == "auto" else 0
    count = config.workers or max(gpus * config.workers_per_gpu, 1)
    return [f"cuda:{number % gpus}" if gpus else device for number in range(count)]
