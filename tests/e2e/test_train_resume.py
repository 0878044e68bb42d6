"""Runs that are killed, interrupted, starved of disk or split over processes end as they should."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import SCRIPT, arguments, assert_same_bits, make_config, start_process, tensors, write_images

from neti.training.config.run import RunConfig
from neti.utils.config.parsing import parse_config

pytestmark = pytest.mark.e2e
STEPS = 12


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("training")
    write_images(root / "images")
    return root


@pytest.fixture(scope="module")
def uninterrupted(root: Path, tiny_backbone_folder: Path) -> float:
    """A run from start to end; gives the seconds it took."""
    start_process(make_config(root, tiny_backbone_folder, dry_run=True)).join()  # the imports, once
    began = time.monotonic()
    process = start_process(make_config(root, tiny_backbone_folder, optim__max_train_steps=STEPS))
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - began


def run_folder(root: Path, name: str) -> Path:
    return root / "runs" / name


def losses(root: Path, name: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_folder(root, name) / "metrics.jsonl").read_text().splitlines()]


def start_script(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


ALONE = """
from accelerate import Accelerator
from neti.training.coach.launch import one_for_all
from neti.utils.errors import UserError, exit_on_user_error

@exit_on_user_error
def main():
    accelerator = Accelerator(cpu=True)
    with one_for_all(accelerator):
        if accelerator.process_index == 1:
            raise UserError("seen by the second")
    raise AssertionError("the first goes on alone")

raise SystemExit(main())
"""


def run_twice(script: list[str]) -> subprocess.CompletedProcess[str]:
    """The script in two processes that know of each other."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *launcher, *script], capture_output=True, text=True, env=environment)


def check_same_run(root: Path, name: str) -> None:
    """The run `name` ended exactly as the uninterrupted one: concepts, losses, and nothing half-written."""
    for step in (2, STEPS // 2, STEPS):
        assert_same_bits(tensors(root, step, name), tensors(root, step))
    assert losses(root, name) == losses(root, "toy")
    assert [record["step"] for record in losses(root, name)] == list(range(1, STEPS + 1))
    assert not list(run_folder(root, name).rglob(".*"))


def test_killed_again_and_again(root: Path, tiny_backbone_folder: Path, uninterrupted: float) -> None:
    """SIGKILL at random times; the same command repeated ends bit for bit like a run that was left alone."""
    config = make_config(
        root, tiny_backbone_folder, log__exp_name="killed", optim__max_train_steps=STEPS, resume="latest"
    )
    delays, killed = [], 0
    for _ in range(20):
        process = start_process(config)
        if len(delays) < 4:
            delays.append(random.uniform(0.15, 0.45) * uninterrupted)
            process.join(delays[-1])
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, f"killed after {delays}"
        killed += 1
    assert process.exitcode == 0
    assert killed >= 2
    check_same_run(root, "killed")


def test_killed_between_any_two_writes(root: Path, tiny_backbone_folder: Path) -> None:
    """SIGKILL right before every single change to the run folder; `--resume latest` ends as if nothing had been."""
    changes: dict[str, object] = {
        "log__save_steps": 1,
        "log__checkpoints_total_limit": 1,
        "optim__max_train_steps": 2,
        "optim__gradient_accumulation_steps": 1,
        "eval__validation_prompts": '["A {}"]',
        "eval__validation_seeds": 1,
        "eval__num_validation_images": 1,
        "eval__num_denoising_steps": 1,
        "eval__validation_steps": 2,
    }
    number = 0
    while True:
        number += 1
        name = f"killed-{number}"
        config = make_config(root, tiny_backbone_folder, **changes, log__exp_name=name, resume="latest")
        process = start_process(config, killed_before=number)
        process.join()
        if process.exitcode == 0:
            break  # there is no such change: this run was left alone
        assert process.exitcode == -signal.SIGKILL
        again = start_process(config)
        again.join()
        assert again.exitcode == 0, f"killed before change {number}"
    assert number > 15
    whole = run_folder(root, name)
    expected = {path.relative_to(whole) for path in whole.rglob("*")}
    for other in range(1, number):
        folder = run_folder(root, f"killed-{other}")
        assert {path.relative_to(folder) for path in folder.rglob("*")} == expected, f"killed before change {other}"
        assert losses(root, folder.name) == losses(root, name)
        for step in (1, 2):
            assert_same_bits(tensors(root, step, folder.name), tensors(root, step, name))
        assert (folder / "validation/step-2.png").read_bytes() == (whole / "validation/step-2.png").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_tells_how_to_go_on(
    root: Path, tiny_backbone_folder: Path, uninterrupted: float, number: signal.Signals
) -> None:
    name = f"stopped-by-{number.name}"
    words = arguments(root, tiny_backbone_folder, log__exp_name=name, optim__max_train_steps=STEPS)
    process = start_script(words)
    folder = run_folder(root, name)
    while not list(folder.glob("checkpoints/step-*.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    stopped_at = int(re.search(rf"stopped by {number.name} after step (\d+), all saved", out)[1])
    assert 2 <= stopped_at < STEPS
    assert (folder / "checkpoints" / f"step-{stopped_at}.pt").exists()

    command = shlex.split(out.splitlines()[-1])
    assert command[:2] == ["python", str(SCRIPT)]
    resumed = start_process(parse_config(RunConfig, command[2:]))
    resumed.join()
    assert resumed.exitcode == 0
    check_same_run(root, name)


def test_a_reader_that_leaves_does_not_end_the_training(
    root: Path, tiny_backbone_folder: Path, uninterrupted: float
) -> None:
    """As `train.py | head -1`, and the terminal closes too."""
    process = start_script(arguments(root, tiny_backbone_folder, log__exp_name="unread", optim__max_train_steps=STEPS))
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline().startswith("run ")
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 0
    check_same_run(root, "unread")


def test_full_disk_leaves_what_was_saved(root: Path, tiny_backbone_folder: Path, uninterrupted: float) -> None:
    """A file that cannot be written whole leaves its older version, and no rest; with room again, the run goes on."""
    changes = {"log__exp_name": "full", "optim__max_train_steps": STEPS}
    folder = run_folder(root, "full")
    first = start_process(make_config(root, tiny_backbone_folder, **{**changes, "optim__max_train_steps": 2}))
    first.join()
    assert first.exitcode == 0
    saved = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*-2.*")}
    assert {path.name for path in saved} == {"concept-steps-2.safetensors", "step-2.pt"}

    config = make_config(root, tiny_backbone_folder, **changes, resume="latest")
    state_size = (folder / "checkpoints" / "step-2.pt").stat().st_size
    starved = start_process(config, largest_file=state_size // 2)  # a concept fits, a state does not
    starved.join()
    assert starved.exitcode == 2
    assert not (folder / "checkpoints" / "step-4.pt").exists()
    assert not list(folder.rglob(".*"))
    assert saved == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in saved}

    again = start_process(config)
    again.join()
    assert again.exitcode == 0
    check_same_run(root, "full")


def test_two_processes_train_the_same_concept(root: Path, tiny_backbone_folder: Path, uninterrupted: float) -> None:
    """Two processes that share the samples of a step between them, in place of two micro-batches of one process."""
    words = arguments(
        root,
        tiny_backbone_folder,
        log__exp_name="two",
        optim__max_train_steps=STEPS,
        optim__gradient_accumulation_steps=1,
        eval__validation_prompts='["A photo of a {}"]',
        eval__validation_steps=STEPS,
        eval__num_validation_images=1,
        eval__validation_seeds=3,
        eval__num_denoising_steps=2,
    )
    done = run_twice([str(SCRIPT), *words])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == 1, "one process speaks for both"
    assert "x processes 2" in done.stdout

    for step in (2, STEPS):
        together, alone = tensors(root, step, "two"), tensors(root, step)
        for name in alone:
            assert (together[name] - alone[name]).abs().max() < 1e-4, name
    single, double = losses(root, "toy"), losses(root, "two")
    assert [record["step"] for record in double] == list(range(1, STEPS + 1)), "each record is written once"
    assert [r["loss"] for r in double] == pytest.approx([r["loss"] for r in single], rel=1e-5)
    assert {r["learning_rate"] for r in double} == {r["learning_rate"] for r in single}
    assert (run_folder(root, "two") / "validation" / f"step-{STEPS}.png").exists()
    assert not list(run_folder(root, "two").rglob(".*"))


def test_what_one_process_finds_wrong_stops_both_with_one_line(root: Path, tiny_backbone_folder: Path) -> None:
    wrong = {"data__super_category_token": "teddytoy"}
    both = run_twice([str(SCRIPT), *arguments(root, tiny_backbone_folder, log__exp_name="new", **wrong)])
    assert len(errors := [line for line in both.stderr.splitlines() if line.startswith("error:")]) == 1, both.stderr
    assert "one is needed" in errors[0]

    script = root / "alone.py"
    script.write_text(ALONE)
    alone = run_twice([str(script)])
    assert [line for line in alone.stderr.splitlines() if line.startswith("error:")] == ["error: seen by the second"]
