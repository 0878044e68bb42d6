"""scripts/train_many.py: every concept there exactly once, on processes and on a Ray cluster that loses a machine."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from load_script import SCRIPTS, load_script
from safetensors.torch import load_file
from tiny_many import write_many

from neti.models.concepts.concept import Concept

SCRIPT = SCRIPTS / "train_many.py"
NAMES = [f"concept{k}" for k in range(5)]

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("train_many")


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """Name -> its row of the table."""
    with open(folder / "out" / "table.csv", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def concepts(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Name -> the tensors of the concept's file."""
    return {path.stem: load_file(path) for path in sorted((folder / "out" / "concepts").iterdir())}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_backbone_folder: Path) -> Path:
    """A folder where two workers of one machine have learned all concepts, and one folder holds a broken picture."""
    folder = tmp_path_factory.mktemp("alone")
    plan = write_many(folder, tiny_backbone_folder, [*NAMES, "broken"], steps=3)
    (folder / "photos" / "broken" / "50.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    command = [sys.executable, str(SCRIPT), "--config_path", str(plan), "--jobs.workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    assert "1 of 6 failed" in done.stderr and "FAILED broken: " in done.stdout
    return folder


def test_every_concept_is_learned_once_and_a_failure_is_no_others(alone: Path) -> None:
    table = rows(alone)
    assert {name: row["state"] for name, row in table.items()} == {**dict.fromkeys(NAMES, "done"), "broken": "failed"}
    assert "50.png" in table["broken"]["error"]
    assert len({row["worker"] for row in table.values() if row["worker"]}) == 2, "both worked"
    assert sorted(concepts(alone)) == NAMES
    concept = Concept.load(Path(table["concept0"]["concept"]))
    assert (concept.placeholder, concept.metadata["step"]) == ("<concept0>", 3)
    assert not list((alone / "out" / "runs").glob("*/checkpoints/*")), "a finished run resumes from nothing"


def test_a_second_call_does_what_is_left(alone: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (alone / "out" / "concepts").iterdir()}
    assert script.main(["--config_path", str(alone / "many.yaml"), "--dry_run"]) == 0
    assert "6 concepts, 5 done; 1 trainings, 3 steps" in capsys.readouterr().out
    (alone / "photos" / "broken" / "50.png").write_bytes((alone / "photos" / "broken" / "51.png").read_bytes())
    assert script.main(["--config_path", str(alone / "many.yaml")]) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (alone / "out" / "concepts").iterdir()}
    assert {name: after[name] for name in before} == before and after.keys() - before.keys() == {"broken.safetensors"}
    assert all(row["state"] == "done" for row in rows(alone).values())


def test_a_stopped_call_goes_on_where_it_was(tmp_path: Path, tiny_backbone_folder: Path) -> None:
    plan = write_many(tmp_path, tiny_backbone_folder, NAMES[:2], steps=60)  # too many to be done before the signal
    command = [sys.executable, str(SCRIPT), "--config_path", str(plan)]
    call = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not list((tmp_path / "out" / "runs").glob("*/checkpoints/step-2.pt")) and call.poll() is None:
        time.sleep(0.05)
    call.send_signal(signal.SIGTERM)
    out, _ = call.communicate(timeout=300)
    assert call.returncode == 128 + signal.SIGTERM and "the same command goes on" in out
    assert {row["state"] for row in rows(tmp_path).values()} == {"not done"}
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stderr
    assert "resumed from" in (tmp_path / "out" / "logs" / "concept0.log").read_text()
    assert {row["state"] for row in rows(tmp_path).values()} == {"done"}


def test_a_cluster_that_loses_a_machine_learns_the_same_concepts(
    alone: Path, tmp_path: Path, tiny_backbone_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines, one killed when both are at work: every concept there once, bit for bit as without Ray."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    plan = write_many(tmp_path, tiny_backbone_folder, NAMES, steps=3)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        command = [sys.executable, str(SCRIPT), "--config_path", str(plan), "--jobs.ray", cluster.address]
        call = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        results = tmp_path / "out" / "results"
        while len(list(results.glob("*.json"))) < 1 and call.poll() is None:
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        out, _ = call.communicate(timeout=900)
    finally:
        cluster.shutdown()
    assert call.returncode == 0, out
    assert "again: concept" in out and "its worker died" in out, "a job was lost with the machine"
    table = rows(tmp_path)
    assert {row["state"] for row in table.values()} == {"done"}
    assert len(list(results.glob("*.json"))) == len(NAMES)
    learned, expected = concepts(tmp_path), concepts(alone)
    assert sorted(learned) == NAMES
    for name, tensors in learned.items():
        assert tensors.keys() == expected[name].keys()
        assert all(torch.equal(tensor, expected[name][key]) for key, tensor in tensors.items()), name
