"""Workers on Ray, one machine or many. Ray is an extra: `pip install "neti[cluster]"`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ...utils.errors import UserError, first_line
from .job import Job
from .pools import LOOK, LOST, Pool
from .worker import MakeWork, Outcome, Worker

MAX_FAILED_STARTS = 20  # in a row; a machine that goes away takes a few with it, a missing package takes all


class RayPool(Pool):
    """Actors on a Ray cluster. A path must mean the same file on all its machines, and the package be on all of them.

    address: "auto" for the cluster that this machine belongs to, an address, or "local" for one on this machine alone.
    size: how many workers are wanted, None for as many as there is room for now. cpus, gpus: what Ray sets aside for
    each, such as 1 and 0.25. Raises UserError without Ray, without such a cluster, and without room.
    """

    def __init__(
        self, make: MakeWork, *, address: str, size: int | None = None, cpus: float = 1, gpus: float = 0
    ) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise UserError('jobs.ray: Ray is not installed; run `pip install "neti[cluster]"`') from None
        self.ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            except (OSError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"jobs.ray = {address!r}: no such Ray cluster ({first_line(error)}); see `ray start`"
                ) from None
        self.size = size or self._room(address, cpus, gpus)
        actor: Any = ray.remote(num_cpus=cpus, num_gpus=gpus)(Worker)
        device = "auto" if gpus else "cpu"  # Ray shows a worker its own GPU alone
        self._new: Callable[[], Any] = lambda: actor.remote(make, device, max(int(cpus), 1))
        self._starting: dict[Any, Any] = {}  # a worker's sign of life to come -> the worker
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Job, Any]] = {}  # an outcome to come -> its job, the worker
        self._failed_starts = 0
        for _ in range(self.size):
            self._hire()

    def free(self) -> bool:
        for sign in self._ready(list(self._starting), 0):
            worker = self._starting.pop(sign)
            try:
                self.ray.get(sign)
                self._idle.append(worker)
                self._failed_starts = 0
            except self.ray.exceptions.RayError as error:
                self._failed_starts += 1
                if self._failed_starts > MAX_FAILED_STARTS:
                    raise UserError(f"jobs.ray: the workers do not start: {first_line(error)}") from error
                self._hire()
        return bool(self._idle)

    def start(self, job: Job, needed: Any) -> None:
        worker = self._idle.pop()
        self._busy[worker.do.remote(job.task, needed)] = job, worker

    def finished(self) -> list[tuple[Job, Outcome]]:
        if not self._busy:  # all that there is still starts
            self._ready(list(self._starting), LOOK)
            return []
        ended = []
        for outcome in self._ready(list(self._busy), LOOK):
            job, worker = self._busy.pop(outcome)
            try:
                ended.append((job, self.ray.get(outcome)))
                self._idle.append(worker)
            except self.ray.exceptions.RayError:  # the actor died, or its whole machine
                ended.append((job, LOST))
                self._hire()
        return ended

    def stop(self) -> None:
        for _, worker in self._busy.values():
            self.ray.kill(worker)

    def close(self) -> None:
        for worker in [*self._starting.values(), *self._idle, *(worker for _, worker in self._busy.values())]:
            self.ray.kill(worker)
        if self._ours:
            self.ray.shutdown()

    def _hire(self) -> None:
        worker = self._new()
        self._starting[worker.ready.remote()] = worker

    def _ready(self, coming: list[Any], timeout: float) -> list[Any]:
        """Those that have come, waiting for one at most."""
        if not coming:
            return []
        ready, rest = self.ray.wait(coming, num_returns=1, timeout=timeout)
        return ready + (self.ray.wait(rest, num_returns=len(rest), timeout=0)[0] if rest else [])

    def _room(self, address: str, cpus: float, gpus: float) -> int:
        there = self.ray.cluster_resources()
        wanted = [(there.get("CPU", 0), cpus), (there.get("GPU", 0), gpus)]
        fit = min((int(has // each) for has, each in wanted if each > 0), default=0)
        if fit < 1:
            raise UserError(
                f"jobs.ray = {address!r}: the cluster has {wanted[0][0]:g} CPUs and {wanted[1][0]:g} GPUs, a worker "
                f"needs {cpus:g} and {gpus:g}; add machines, ask for less, or let jobs.workers of them wait for room"
            )
        return fit
