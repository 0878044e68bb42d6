"""A run folder: one trainer at a time, only listed files are removed, impossible places are refused early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neti.training.coach.run_folder import RunFolder
from neti.training.coach.state import state_to_resume
from neti.utils.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run", tmp_path / "run" / "logs")
    run.begin({"run_folder": "run"}, overwrite=False)
    return run


def test_only_listed_files_are_removed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", tmp_path / "run" / ".." / "shared")
    run.begin({"run_folder": "run"}, overwrite=False)
    events = [run.path / "events.out.tfevents.1", run.trackers / "events.out.tfevents.2"]
    ours = [run.config, run.metrics, run.concept(5), run.state(5), run.validation(5), events[0]]
    ours += [run.validation(5, (("truncation", None), ("beta", 0.5)))]
    theirs = [run.path / "notes.txt", run.path / ".notes.tmp", run.path / "images" / "a.png", events[1]]
    theirs += [run.states_folder / "notes.txt", run.validation_folder / "photo.png", run.path / ".photo.png.7.tmp"]
    half = [run.states_folder / ".step-5.pt.77.tmp", run.path / ".config.yaml.8.tmp"]
    run.expect(*ours)
    for path in [*ours, *theirs, *half]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    run.begin({"run_folder": "run"}, overwrite=True)
    left = {path.resolve() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {path.resolve() for path in [*theirs, run.derived]}


def test_a_forged_list_removes_nothing_else(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run", tmp_path / "run" / "logs")
    names = ["../mine.txt", "../events.out.tfevents.1", "notes.txt", "logs/../../events.out.tfevents.1", 7, None]
    names.append(str(tmp_path / "events.out.tfevents.1"))
    run.path.mkdir()
    run.derived.write_text(json.dumps({"run_folder": "run", "files": names}))
    theirs = [tmp_path / "mine.txt", tmp_path / "events.out.tfevents.1", run.path / "notes.txt"]
    for path in theirs:
        path.write_text("x")
    with pytest.raises(UserError, match=r"did not write: derived\.json"):
        state_to_resume(None, True, run)
    run.begin({"run_folder": "run"}, overwrite=True)
    assert all(path.exists() for path in theirs)


def test_a_folder_that_was_being_emptied_starts_again(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.expect(run.state(5), run.concept(5))
    for path in (run.state(5), run.concept(5)):
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")

    def killed(path: Path, missing_ok: bool = False) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", killed)
        run.begin({"run_folder": "run"}, overwrite=True)
    assert run.state(5).exists()
    assert state_to_resume("latest", False, run) is None, "not the state of the run that was to go"
    run.begin({"run_folder": "run"}, overwrite=False)
    assert not run.state(5).exists() and not run.concept(5).exists()


HOLDS = """
import sys, time
from pathlib import Path
from neti.training.coach.run_folder import RunFolder
with RunFolder(Path(sys.argv[1]), Path()).lock():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_holds_a_run_folder(run: RunFolder) -> None:
    run.check_free()
    script = [sys.executable, "-c", HOLDS, str(run.path)]
    with subprocess.Popen(script, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        for _ in range(2):
            with pytest.raises(UserError, match=rf"^process {process.pid} on \S+ is training into .*run; wait until"):
                run.check_free()
        process.kill()
        process.wait()
        run.check_free()
        with run.lock():
            assert (run.path / ".lock").exists()
    assert not (run.path / ".lock").exists()


def test_places_that_cannot_be_are_refused_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is no folder, and the run needs one there"):
        RunFolder(tmp_path / "file" / "runs" / "toy", tmp_path).check_places()
    for name in ("checkpoints", "validation"):
        run = RunFolder(tmp_path / name, tmp_path)
        run.path.mkdir()
        (run.path / name).write_text("")
        with pytest.raises(UserError, match=rf"{name}/{name} is no folder"):
            run.check_places()
    run = RunFolder(tmp_path / "metrics", tmp_path)
    run.metrics.mkdir(parents=True)
    with pytest.raises(UserError, match=r"metrics\.jsonl is a folder, where the run writes a file"):
        run.check_places()


@pytest.mark.parametrize("name", ["checkpoints", "validation"])
def test_a_link_out_of_the_run_folder_is_refused_and_nothing_behind_it_goes(tmp_path: Path, name: str) -> None:
    run, elsewhere = RunFolder(tmp_path / "run", tmp_path), tmp_path / "elsewhere"
    for folder in (run.path, elsewhere):
        folder.mkdir()
    (elsewhere / "step-2.pt").write_text("somebody's")
    (run.path / name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=rf"{name} is a link, and a run keeps its files inside its folder"):
        run.check_places()
    assert (elsewhere / "step-2.pt").read_text() == "somebody's"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody without permission")
@pytest.mark.parametrize("mode", [0o500, 0o300, 0o000])
def test_a_folder_without_permission_is_refused_early(tmp_path: Path, mode: int) -> None:
    for folder in [tmp_path, *tmp_path.parents[:-1]]:
        folder.chmod(folder.stat().st_mode | 0o011)
    run = RunFolder(tmp_path / "run", tmp_path / "logs")
    run.path.mkdir()
    os.chown(run.path, 65534, 65534)
    run.path.chmod(mode)
    os.setresuid(65534, 65534, 0)
    try:
        with pytest.raises(UserError, match=r"no permission to write to the folder .*run; choose another"):
            run.check_places()
    finally:
        os.setresuid(0, 0, 0)
