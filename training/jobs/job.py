"""Units of work that do not need one another's memory, and the files that their results are."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...utils.errors import UserError
from ...utils.files import write_json


@dataclass(frozen=True)
class Job:
    """Something to be done once, by any worker.

    name: says what it is, one of its kind in a plan; key: a hash of everything that its result depends on. needs: the
    name of the job that must be done before. task: what the worker is handed, anything that can be pickled. work: how
    much of which kind it is, such as ("steps", 300), for the estimate of the time left.
    """

    name: str
    key: str
    task: Any = None
    needs: str | None = None
    work: tuple[str, float] = ("jobs", 1.0)


class Results:
    """Finished jobs as files `name-key.json` in one folder: what has a file is never done again.

    A result whose job has changed keeps its file under the old key, and counts again when the job is changed back.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = {path.name for path in folder.glob("*.json")}  # thousands of jobs: one look at the folder

    def path(self, job: Job) -> Path:
        """The file of the job's result."""
        return self.folder / f"{job.name}-{job.key}.json"

    def finished(self, job: Job) -> bool:
        """Whether the job is done."""
        return self.path(job).name in self._names

    def record(self, job: Job) -> dict[str, Any]:
        """What is kept of the finished job: `result`, `seconds`, and where it was done."""
        try:
            return json.loads(self.path(job).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path(job)} is damaged ({error}); remove it, and its job is done again") from None

    def result(self, job: Job) -> Any:
        """What the worker returned for the finished job."""
        return self.record(job)["result"]

    def keep(self, job: Job, record: dict[str, Any]) -> None:
        """Write a job's record, whole or not at all; the job is finished then."""
        write_json({"name": job.name, **record}, self.path(job))
        self._names.add(self.path(job).name)

    def forget(self, job: Job) -> None:
        """Remove the job's result, so that it is done again."""
        self.path(job).unlink(missing_ok=True)
        self._names.discard(self.path(job).name)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while jobs are handed out; the system frees it when the process ends, in whatever way. UserError if
        another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise UserError(f"another call is at work in {self.folder.parent}; wait for it, or stop it") from None


def matching(jobs: Sequence[Job], pattern: str) -> list[Job]:
    """The jobs whose names match a pattern with * and ?."""
    return [job for job in jobs if fnmatch.fnmatchcase(job.name, pattern)]
