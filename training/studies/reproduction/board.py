"""Which cells are done, and who works on which: any number of processes share one folder and nothing else.

A finished cell is a file whose name carries a hash of everything its result depends on. A cell is claimed by a lock
that the operating system holds for the process and drops when the process ends, in whatever way: no claim goes stale.
"""

from __future__ import annotations

import fnmatch
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ....utils.files import write_json
from ....utils.hashing import json_hash
from .cells import Cell, Drawing, Training, amount
from .plan_config import ReproductionConfig

WAIT = 1.0  # seconds between two looks for work while others hold all that is left


@dataclass(frozen=True)
class Contents:
    """Digests of the files that results depend on: the base model, the judge's weights, each concept's images."""

    model: str
    judge: str
    photos: dict[str, str]


class Board:
    """The results of a plan in its work_dir.

    processes: how many share the work, for the estimate of the time left. tell: prints a line of progress.
    """

    def __init__(
        self, config: ReproductionConfig, contents: Contents, processes: int = 1, tell: Callable[[str], None] = print
    ) -> None:
        self.config, self.contents, self.processes, self.tell = config, contents, processes, tell
        self.results = config.work_dir / "results"
        self.locks = config.work_dir / "locks"
        self._keys: dict[Cell, str] = {}
        self._seconds = Seconds(config)
        for path in self.results.glob("*.json"):
            self._seconds.learn(_read(path))

    def key(self, cell: Cell) -> str:
        """Twelve hex digits of all that the cell's result depends on."""
        if cell not in self._keys:
            photos = self.contents.photos[cell.concept.name]
            if isinstance(cell, Training):
                parts: list[object] = [self.contents.model, photos, cell.ingredients]
            else:
                rules = [self.config.placeholder, self.config.resizing, cell.concept.super_category]
                images = [cell.images.prompts, cell.images.seeds]
                parts = [self.images_key(cell), images, photos, self.contents.judge, *rules]
            self._keys[cell] = json_hash(parts)
        return self._keys[cell]

    def images_key(self, drawing: Drawing) -> str:
        """Twelve hex digits of all that decides a drawing's images but prompt and seed: several sets share images."""
        config = self.config
        sampling = [config.num_denoising_steps, config.guidance_scale, config.scheduler, config.torch_dtype]
        what: list[object] = [drawing.concept.super_category, self.contents.model]
        if drawing.training is not None:
            what = [self.key(drawing.training), drawing.step, drawing.truncation, drawing.bypass]
        return json_hash([what, sampling])

    def path(self, cell: Cell) -> Path:
        """The file of the cell's result."""
        return self.results / f"{cell.name}-{self.key(cell)}.json"

    def result(self, cell: Cell) -> dict[str, Any]:
        """What the finished cell gave."""
        return _read(self.path(cell))["result"]

    def finished(self, cell: Cell) -> bool:
        return self.path(cell).exists()

    def forget(self, cells: Sequence[Cell], leftovers: Callable[[Cell], object]) -> None:
        """Remove the results of these cells and, by `leftovers`, what else they left; not of those being worked on."""

        def remove(cell: Cell) -> None:
            self.path(cell).unlink(missing_ok=True)
            leftovers(cell)

        for cell in cells:
            self._claimed(cell, remove)

    def spent(self, cells: Sequence[Cell]) -> float:
        """Seconds that the finished cells took, each on its own process."""
        return sum(_read(self.path(cell))["seconds"] for cell in cells)

    def run(self, cells: Sequence[Cell], work: Callable[[Cell], dict[str, Any]], later: Sequence[Cell] = ()) -> None:
        """Return when all `cells` are finished, by this process or by others.

        later: what comes afterwards, for the estimate of the time left.
        """
        waiting = False
        while pending := [cell for cell in cells if not self.finished(cell)]:
            ready = [cell for cell in pending if cell.requires is None or self.finished(cell.requires)]
            # the first cell that nobody else has; then look again, since more may be ready by now
            if any(self._claimed(cell, lambda claimed: self._do(claimed, work, cells, later)) for cell in ready):
                waiting = False
                continue
            if not waiting:
                self.tell(f"waiting for other processes: they have the last {len(pending)} cells")
            waiting = True
            time.sleep(WAIT)

    def _claimed(self, cell: Cell, act: Callable[[Cell], object]) -> bool:
        """Call `act` on the cell while holding the cell's lock; False if another process holds it."""
        self.locks.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.locks / f"{cell.name}.lock", timeout=0):
                act(cell)
                return True
        except Timeout:
            return False

    def _do(
        self, cell: Cell, work: Callable[[Cell], dict[str, Any]], cells: Sequence[Cell], later: Sequence[Cell]
    ) -> None:
        if self.finished(cell):  # by another process, between our look and our claim
            return
        start = time.monotonic()
        result = work(cell)
        steps, images = amount([cell])
        record = {"name": cell.name, "seconds": time.monotonic() - start, "steps": steps, "images": images}
        write_json({**record, "result": result}, self.path(cell))
        self._seconds.learn(record)
        left = [each for each in cells if not self.finished(each)]
        time_left = duration(self.seconds([*left, *later]))
        self.tell(
            f"[{len(cells) - len(left)}/{len(cells)}] {cell.name}: {record['seconds']:.0f} s; "
            f"{len(left) + len(later)} cells and about {time_left} left"
        )

    def seconds(self, cells: Sequence[Cell]) -> float:
        """The time that doing these cells will take all processes together."""
        return self._seconds.estimate(cells) / self.processes


class Seconds:
    """What steps and images take: as the plan guesses, then as the finished cells say."""

    def __init__(self, config: ReproductionConfig) -> None:
        self.guesses = {"steps": config.seconds_per_step, "images": config.seconds_per_image}
        self.spent = {"steps": 0.0, "images": 0.0}
        self.done = {"steps": 0, "images": 0}

    def learn(self, record: dict[str, Any]) -> None:
        """Take a finished cell's time into account."""
        kind = "steps" if record["steps"] else "images"
        self.spent[kind] += record["seconds"]
        self.done[kind] += record[kind]

    def estimate(self, cells: Sequence[Cell]) -> float:
        """Seconds that one process would need for the cells."""
        rates = {
            kind: self.spent[kind] / self.done[kind] if self.done[kind] else self.guesses[kind] for kind in self.done
        }
        steps, images = amount(cells)
        return steps * rates["steps"] + images * rates["images"]


def matching(cells: Sequence[Cell], pattern: str) -> list[Cell]:
    """The cells whose names match a pattern with * and ?."""
    return [cell for cell in cells if fnmatch.fnmatchcase(cell.name, pattern)]


def with_required(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, each after the one it needs."""
    return list(dict.fromkeys(each for cell in cells for each in (cell.requires, cell) if each is not None))


def duration(seconds: float) -> str:
    """`2 h 05 min` or `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
