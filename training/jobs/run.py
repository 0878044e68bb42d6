"""Doing jobs: each once, in any order that their needs allow, a failure of one being no other's."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ..coach.stop import GracefulStop
from .job import Job, Results
from .pools import Pool
from .worker import Outcome, Stopped

ENOUGH = 200  # finished jobs that say how fast work goes


class Failure(NamedTuple):
    """A job that could not be done, and why, in one line."""

    job: Job
    error: str


def run_jobs(
    jobs: Sequence[Job],
    results: Results,
    pool: Pool,
    *,
    logs: Path,
    attempts: int = 3,
    seconds_per: Mapping[str, float] | None = None,
    later: Sequence[Job] = (),
    show: Callable[[str], object] = print,
) -> list[Failure]:
    """Do all jobs that have no result yet; returns those that failed, and those that needed one of them.

    A job is tried again, up to `attempts` times, if its worker died or it failed for a reason that may pass; not after
    a mistake of the user's. logs: where tracebacks go, `<job>.log`. seconds_per: kind of work -> a guess of what a unit
    takes, until some were timed; later: what comes afterwards, for the time left. show: prints a line.
    Raises Stopped when a signal asked to stop: the jobs at work keep what they can, and the same call goes on.
    """
    known = {job.name: job for job in jobs}
    todo = [job for job in jobs if not results.finished(job)]
    waiting: dict[str, list[Job]] = {}
    ready: deque[Job] = deque()
    for job in todo:
        needed = known.get(job.needs or "")
        if needed is None or results.finished(needed):
            ready.append(job)
        else:
            waiting.setdefault(needed.name, []).append(job)
    pace = Pace(seconds_per or {}, pool.size)
    for job in islice((job for job in jobs if results.finished(job)), ENOUGH):
        pace.learn(job, results.record(job)["seconds"])
    left = {job.name: job for job in todo}
    tries: Counter[str] = Counter()
    failures: list[Failure] = []
    running = 0

    def give_up(job: Job, error: str) -> None:
        failures.append(Failure(job, error))
        left.pop(job.name)
        show(f"FAILED {job.name}: {error}")
        for other in waiting.pop(job.name, []):
            give_up(other, f"needs {job.name}, which failed")

    def end(job: Job, outcome: Outcome) -> None:
        if outcome.error is None:
            results.keep(job, {"seconds": outcome.seconds, "worker": outcome.worker, "result": outcome.result})
            pace.learn(job, outcome.seconds)
            left.pop(job.name)
            ready.extendleft(reversed(waiting.pop(job.name, [])))
            time_left = duration(pace.estimate([*left.values(), *later]))
            show(
                f"[{len(jobs) - len(left)}/{len(jobs)}] {job.name}: {outcome.seconds:.0f} s; "
                f"{len(left) + len(later)} jobs and about {time_left} left"
            )
            return
        if outcome.details:
            _append(logs / f"{job.name}.log", outcome.details)
        tries[job.name] += 1
        if outcome.retry and tries[job.name] < attempts:
            show(f"again: {job.name}: {outcome.error}")
            ready.append(job)
        else:
            give_up(job, outcome.error)

    with GracefulStop() as stop:
        stopping = False
        while running or (ready and not stopping):
            while ready and not stopping and pool.free():
                job = ready.popleft()
                needed = known.get(job.needs or "")
                pool.start(job, results.result(needed) if needed else None)
                running += 1
            for job, outcome in pool.finished():
                running -= 1
                if outcome.stopped is not None and stop.received is None:
                    stop.received = outcome.stopped - 128
                if outcome.error is None or stop.received is None:
                    end(job, outcome)
            if stop.received is not None and not stopping:
                stopping = True
                pool.stop()
    if stop.received is not None:
        raise Stopped(128 + stop.received)
    return failures


class Pace:
    """What work takes: as guessed, then as the finished jobs say. workers: how many share it."""

    def __init__(self, seconds_per: Mapping[str, float], workers: int = 1) -> None:
        self.guesses, self.workers = seconds_per, workers
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._amounts: defaultdict[str, float] = defaultdict(float)

    def learn(self, job: Job, seconds: float) -> None:
        """Take a finished job's time into account."""
        kind, amount = job.work
        self._seconds[kind] += seconds
        self._amounts[kind] += amount

    def estimate(self, jobs: Sequence[Job]) -> float:
        """Seconds that all workers together will need for the jobs; a kind that nothing is known about takes none."""
        return sum(amount * self._rate(kind) for kind, amount in (job.work for job in jobs)) / self.workers

    def _rate(self, kind: str) -> float:
        done = self._amounts[kind]
        return self._seconds[kind] / done if done else self.guesses.get(kind, 0.0)


def duration(seconds: float) -> str:
    """`2 h 05 min` or `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)
