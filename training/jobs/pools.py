"""Where workers run: processes on this machine, or Ray, on one machine or many. Both take and give the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

from .job import Job
from .worker import MakeWork, Outcome, Worker

LOST = Outcome(error="its worker died (killed, out of memory, or its machine went away)")
LOOK = 0.5  # seconds after which `finished` returns, even if nothing ended


class Pool(ABC):
    """A number of workers, each of which does one job at a time. A worker that dies is replaced.

    size: how many workers are wanted; on a cluster fewer may run. A context manager that ends its workers.
    """

    size: int

    @abstractmethod
    def free(self) -> bool:
        """Whether a worker waits for work."""

    @abstractmethod
    def start(self, job: Job, needed: Any) -> None:
        """Hand a job to a free worker. needed: the result of the job that it needs."""

    @abstractmethod
    def finished(self) -> list[tuple[Job, Outcome]]:
        """The jobs that have ended since the last call; waits a moment if there are none."""

    @abstractmethod
    def stop(self) -> None:
        """Ask the jobs at work to end soon, keeping what they have; what cannot be asked ends at once."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProcessPool(Pool):
    """Processes on this machine, one for each entry of `devices`; they are started when there is work for them.

    threads: PyTorch's, of each.
    """

    def __init__(self, make: MakeWork, devices: Sequence[str], threads: int | None = None) -> None:
        self.make, self.devices, self.threads, self.size = make, list(devices), threads, len(devices)
        self._executors: dict[int, ProcessPoolExecutor] = {}  # one each, since a broken one gives up all its processes
        self._pids: dict[int, Future[int]] = {}
        self._busy: dict[int, tuple[Job, Future[Outcome]]] = {}

    def free(self) -> bool:
        return len(self._busy) < self.size

    def start(self, job: Job, needed: Any) -> None:
        slot = next(number for number in range(self.size) if number not in self._busy)
        try:
            outcome = self._executor(slot).submit(_do, job.task, needed)
        except BrokenProcessPool:  # it died while it had nothing to do
            self._executors.pop(slot).shutdown()
            outcome = self._executor(slot).submit(_do, job.task, needed)
        self._busy[slot] = job, outcome

    def finished(self) -> list[tuple[Job, Outcome]]:
        wait([future for _, future in self._busy.values()], timeout=LOOK, return_when=FIRST_COMPLETED)
        ended = []
        for slot, (job, future) in list(self._busy.items()):
            if future.done():
                del self._busy[slot]
                try:
                    ended.append((job, future.result()))
                except BrokenProcessPool:
                    self._executors.pop(slot).shutdown()
                    ended.append((job, LOST))
        return ended

    def _executor(self, slot: int) -> ProcessPoolExecutor:
        if slot not in self._executors:
            self._executors[slot] = ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),  # CUDA does not survive a fork
                initializer=_begin,
                initargs=(self.make, self.devices[slot], self.threads),
            )
            self._pids[slot] = self._executors[slot].submit(os.getpid)
        return self._executors[slot]

    def stop(self) -> None:
        for slot in self._busy:
            if self._pids[slot].done():
                with suppress(ProcessLookupError, BrokenProcessPool):
                    os.kill(self._pids[slot].result(), signal.SIGTERM)

    def close(self) -> None:
        self.stop()
        for executor in self._executors.values():
            executor.shutdown(cancel_futures=True)


_worker: Worker  # of this process, if it is one of a ProcessPool


def _begin(make: MakeWork, device: str, threads: int | None) -> None:
    """In a new process: ends with the one that started it, and leaves Ctrl-C to it."""
    global _worker
    _worker = Worker(make, device, threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(task: Any, needed: Any) -> Outcome:
    return _worker.do(task, needed)
