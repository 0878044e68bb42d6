"""Many jobs on processes: each done once, failures apart from one another, nothing lost when something dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_work import making

from neti.training.jobs.config import JobsConfig, open_pool
from neti.training.jobs.job import Job, Results, matching
from neti.training.jobs.pools import ProcessPool
from neti.training.jobs.run import Pace, duration, run_jobs
from neti.training.jobs.worker import Stopped
from neti.utils.errors import UserError

TESTS = Path(__file__).parents[1]


def job(name: str, act: str = "", needs: str | None = None, key: str = "k", **more: Any) -> Job:
    return Job(name, key, {"name": name, "act": act, **more}, needs)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ProcessPool]:
    with ProcessPool(making(tmp_path), ["cpu", "cpu"]) as pool:
        yield pool


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results")


def done(folder: Path) -> list[str]:
    return (folder / "done").read_text().splitlines()


def test_every_job_is_done_once_after_what_it_needs_and_workers_load_once(
    pool: ProcessPool, results: Results, tmp_path: Path
) -> None:
    jobs = [job("b", needs="a"), job("c", needs="a"), *(job(f"free{k}", seconds=0.05) for k in range(6)), job("a")]
    lines: list[str] = []
    assert run_jobs(jobs, results, pool, logs=tmp_path / "logs", show=lines.append) == []
    assert sorted(done(tmp_path)) == sorted(each.name for each in jobs)
    assert results.result(jobs[0])["needed"] == results.result(jobs[-1])
    assert len((tmp_path / "loaded").read_text().splitlines()) == 2, "whatever is loaded serves all jobs of a worker"
    assert len({results.result(each)["pid"] for each in jobs}) == 2, "both worked"
    assert lines[0].startswith("[1/9] ") and "; 8 jobs and about " in lines[0]
    assert lines[-1].startswith("[9/9] ") and lines[-1].endswith("0 jobs and about 0 s left")
    assert run_jobs(jobs, Results(results.folder), pool, logs=tmp_path / "logs") == []
    assert len(done(tmp_path)) == len(jobs), "a second call does nothing"
    changed = job("a", key="other")
    run_jobs([changed], Results(results.folder), pool, logs=tmp_path / "logs")
    assert done(tmp_path)[len(jobs) :] == ["a"], "another key is another job"


def test_a_failure_is_no_other_jobs(pool: ProcessPool, results: Results, tmp_path: Path) -> None:
    jobs = [
        job("mistake", "mistake"),
        job("fail", "fail"),
        job("fails once", "fail once"),
        job("dies once", "die once"),
        job("dies", "die"),
        job("needs dies", needs="dies"),
        job("needs needs", needs="needs dies"),
        *(job(f"free{k}") for k in range(3)),
    ]
    lines: list[str] = []
    failures = run_jobs(jobs, results, pool, logs=tmp_path / "logs", attempts=2, show=lines.append)
    assert {failure.job.name: failure.error for failure in failures} == {
        "mistake": "the photo is broken; two lines of it",
        "fail": "RuntimeError: always",
        "dies": "its worker died (killed, out of memory, or its machine went away)",
        "needs dies": "needs dies, which failed",
        "needs needs": "needs needs dies, which failed",
    }
    tries = {each.name: done(tmp_path).count(each.name) for each in jobs}
    assert tries["mistake"] == 1, "a mistake is not tried again"
    assert [tries[name] for name in ("fail", "fails once", "dies once", "dies")] == [2, 2, 2, 2]
    assert tries["needs dies"] == tries["needs needs"] == 0
    assert all(map(results.finished, [jobs[2], jobs[3], *jobs[-3:]]))
    assert "Traceback" in (tmp_path / "logs" / "fail.log").read_text()
    assert "FAILED fail: RuntimeError: always" in lines
    assert not results.finished(jobs[0]), "a failed job is tried again by the next call"


def when(there: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Do something in a thread as soon as something is there."""

    def watch() -> None:
        for _ in range(6000):
            if there():
                act()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_a_signal_stops_all_and_the_next_call_goes_on(pool: ProcessPool, results: Results, tmp_path: Path) -> None:
    jobs = [job("first"), job("long", "until stopped"), *(job(f"more{k}", needs="long") for k in range(2))]
    watcher = when((tmp_path / "at work").exists, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped) as stopped:
        run_jobs(jobs, results, pool, logs=tmp_path / "logs")
    watcher.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert results.finished(jobs[0]) and not results.finished(jobs[1])
    calm = [jobs[0], job("long"), *jobs[2:]]
    assert run_jobs(calm, results, pool, logs=tmp_path / "logs") == []
    assert done(tmp_path).count("first") == 1


DRIVER = """
import sys
from pathlib import Path
from job_work import making
from neti.training.jobs.job import Job, Results
from neti.training.jobs.pools import ProcessPool
from neti.training.jobs.run import run_jobs
folder = Path(sys.argv[1])
if __name__ == "__main__":
    results = Results(folder / "results")
    with results.lock(), ProcessPool(making(folder), ["cpu"]) as pool:
        jobs = [Job("a", "k", {"name": "a"}), Job("b", "k", {"name": "b", "act": "wait"})]
        run_jobs(jobs, results, pool, logs=folder)
"""


def test_a_killed_call_takes_its_workers_along_and_frees_its_lock(results: Results, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    driver = subprocess.Popen([sys.executable, str(tmp_path / "driver.py"), str(tmp_path)], env=environment)
    while not (tmp_path / "at work").exists() and driver.poll() is None:
        time.sleep(0.01)
    with pytest.raises(UserError, match="another call is at work in"), Results(results.folder).lock():
        pass
    driver.kill()
    driver.wait()
    worker = int((tmp_path / "loaded").read_text().split()[0])
    for _ in range(1000):
        if not _alive(worker):
            break
        time.sleep(0.01)
    assert not _alive(worker)
    results = Results(results.folder)
    with results.lock():
        assert results.finished(job("a")) and not results.finished(job("b"))


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_worker_that_died_idle_is_replaced(pool: ProcessPool, results: Results, tmp_path: Path) -> None:
    run_jobs([job("a")], results, pool, logs=tmp_path)
    os.kill(results.result(job("a"))["pid"], signal.SIGKILL)
    time.sleep(0.2)
    assert run_jobs([job("b")], results, pool, logs=tmp_path) == []


def test_forgotten_jobs_are_done_again(results: Results) -> None:
    results.keep(job("a"), {"result": 1, "seconds": 0})
    assert Results(results.folder).finished(job("a"))
    results.forget(job("a"))
    assert not results.finished(job("a")) and not Results(results.folder).finished(job("a"))


def test_a_damaged_result_is_one_line(results: Results) -> None:
    results.keep(job("a"), {"result": 1, "seconds": 0})
    results.path(job("a")).write_text("{")
    with pytest.raises(UserError, match="remove it, and its job is done again"):
        results.result(job("a"))


def test_patterns() -> None:
    jobs = [job("main.neti.tiger"), job("main.xti.tiger"), job("search.neti.tiger")]
    assert matching(jobs, "main.*.tiger") == jobs[:2]


def test_the_time_left_follows_what_was_timed() -> None:
    jobs = [Job("a", "k", work=("steps", 6)), Job("b", "k", work=("images", 5)), Job("c", "k", work=("other", 1))]
    pace = Pace({"steps": 0.5, "images": 2.0}, workers=2)
    assert pace.estimate(jobs) == pytest.approx((6 * 0.5 + 5 * 2) / 2)
    pace.learn(Job("d", "k", work=("steps", 2)), 20.0)
    assert pace.estimate(jobs) == pytest.approx((6 * 10 + 5 * 2) / 2)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (89.4, "89 s"), (600, "10 min"), (3570, "1 h 00 min"), (9000, "2 h 30 min")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_pool_from_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = open_pool(JobsConfig(workers=3), "cpu", making(tmp_path))
    assert isinstance(pool, ProcessPool) and pool.devices == ["cpu"] * 3
    pool.close()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without a launcher"):
        open_pool(JobsConfig(), "cpu", making(tmp_path))
