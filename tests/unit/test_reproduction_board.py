"""The board: every cell is done once, by whichever process has it, and what is finished stays finished."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_plan import read_plan, write_plan

from neti.training.studies.reproduction.board import Board, Contents, Seconds, duration
from neti.training.studies.reproduction.cells import Cell, Training, search_cells
from neti.training.studies.reproduction.plan_config import ReproductionConfig
from neti.utils.errors import UserError

SPAWN = multiprocessing.get_context("fork")  # no thread is started before, and a spawned process imports for seconds


@pytest.fixture
def plan(tmp_path: Path, tiny_backbone_folder: Path) -> ReproductionConfig:
    return read_plan(write_plan(tmp_path, tiny_backbone_folder))


def board_of(plan: ReproductionConfig, lines: list[str] | None = None, processes: int = 1) -> Board:
    contents = Contents("model", "judge", dict.fromkeys(("bear", "cube", "ball"), "photos"))
    return Board(plan, contents, processes, (lines if lines is not None else []).append)


def test_cells_are_done_in_order_after_what_they_need_and_once(plan: ReproductionConfig) -> None:
    done: list[str] = []
    lines: list[str] = []

    def work(cell: Cell) -> dict[str, Any]:
        assert cell.requires is None or cell.requires.name in done
        done.append(cell.name)
        return {"of": cell.name}

    cells = search_cells(plan)
    board = board_of(plan, lines)
    board.run(cells[::-1], work)
    assert sorted(done) == sorted(cell.name for cell in cells)
    assert all(board.result(cell) == {"of": cell.name} for cell in cells)
    assert lines[0].startswith("[1/8] ") and " 7 cells and about " in lines[0]
    assert lines[-1].startswith("[8/8] ") and lines[-1].endswith("0 cells and about 0 s left")
    board_of(plan).run(cells, work)
    assert len(done) == len(cells), "a second call does nothing"


def test_forgotten_cells_are_done_again(plan: ReproductionConfig) -> None:
    cells = search_cells(plan)
    board, done, left = board_of(plan), [], []
    board.run(cells, lambda cell: {})
    board.forget(cells[1:3], left.append)
    assert left == cells[1:3]
    board.run(cells, lambda cell: done.append(cell) or {})
    assert done == cells[1:3]


def test_a_failure_leaves_the_cell_undone_and_free(plan: ReproductionConfig) -> None:
    cells = search_cells(plan)

    def fail(cell: Cell) -> dict[str, Any]:
        if isinstance(cell, Training):
            raise UserError("the disk is full")
        return {}

    with pytest.raises(UserError, match="disk"):
        board_of(plan).run(cells, fail)
    board = board_of(plan)
    assert board.finished(cells[0]) and not board.finished(cells[1])
    board.run(cells, lambda cell: {})
    assert all(map(board.finished, cells))


def _worker(plan: ReproductionConfig, log: Path, pause: float) -> None:
    def work(cell: Cell) -> dict[str, Any]:
        with open(log, "a") as file:
            file.write(cell.name + "\n")
        time.sleep(pause)
        return {}

    board_of(plan, processes=2).run(search_cells(plan), work)


def test_two_processes_share_the_work_and_do_nothing_twice(plan: ReproductionConfig, tmp_path: Path) -> None:
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    workers = [SPAWN.Process(target=_worker, args=(plan, log, 0.1)) for log in logs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    done = [log.read_text().split() for log in logs]
    assert sorted(done[0] + done[1]) == sorted(cell.name for cell in search_cells(plan))
    assert done[0] and done[1], "both had something to do"


def test_the_claim_of_a_killed_process_is_free_at_once(plan: ReproductionConfig, tmp_path: Path) -> None:
    log = tmp_path / "killed.log"
    worker = SPAWN.Process(target=_worker, args=(plan, log, 1000.0))
    worker.start()
    for _ in range(600):
        if log.exists():
            break
        time.sleep(0.05)
    assert worker.pid is not None
    cells, lines = search_cells(plan), []
    claimed = log.read_text().split()
    assert claimed == [cells[0].name]
    board = board_of(plan, lines)
    board._claimed(cells[0], lambda cell: pytest.fail("another process holds it"))
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    board.run(cells, lambda cell: {})
    assert board.finished(cells[0])


def test_the_time_left_follows_what_was_timed(plan: ReproductionConfig) -> None:
    cells = search_cells(plan)
    guess = Seconds(plan)
    assert guess.estimate(cells) == pytest.approx(6 * plan.seconds_per_step + 5 * plan.seconds_per_image)
    guess.learn({"steps": 2, "images": 0, "seconds": 20.0})
    guess.learn({"steps": 0, "images": 4, "seconds": 4.0})
    assert guess.estimate(cells) == pytest.approx(6 * 10 + 5 * 1)
    board = board_of(plan, processes=2)
    record = {"name": "x", "steps": 0, "images": 2, "seconds": 6.0, "result": {}}
    board.results.mkdir(parents=True)
    (board.results / "x.json").write_text(json.dumps(record))
    resumed = board_of(plan, processes=2)
    assert resumed.seconds(cells) == pytest.approx((6 * plan.seconds_per_step + 5 * 3) / 2)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (89.4, "89 s"), (600, "10 min"), (3570, "1 h 00 min"), (9000, "2 h 30 min")]
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told
