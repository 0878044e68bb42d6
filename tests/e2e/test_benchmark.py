"""scripts/benchmark.py on the miniature, at its smallest; what it finds is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from neti.training.studies.benchmark import numerics_rows as numerics
from neti.training.studies.benchmark.commands import Commands
from neti.training.studies.benchmark.config import BenchmarkConfig
from neti.training.studies.benchmark.startup_rows import startup_rows

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
CONFIG = BenchmarkConfig(device="cpu", repeats=1, train_config=ROOT / "input_configs" / "train_miniature.yaml")


def test_the_script_writes_numbers_and_page(tmp_path: Path) -> None:
    options = ["--name", "tiny", "--sections", "[sampling, training]", "--resolution", "32", "--repeats", "1"]
    options += ["--batch", "2", "--accumulation", "2", "--seeds", "1", "--sampling_steps", "2", "--device", "cpu"]
    options += ["--conditioning_steps", "2", "--single_calls", "2", "--train_config", str(CONFIG.train_config)]
    options += ["--work_dir", str(tmp_path / "work"), "--docs_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "benchmark.py"), *options], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "work" / "tiny.json").read_text())
    assert list(found["tables"]) == ["miniature: images", "miniature: training", "miniature: what was tried"]
    page = (tmp_path / "performance.md").read_text()
    for title, rows in found["tables"].items():
        assert title in done.stdout and f"### {title}" in page
        assert all(row["what"] in done.stdout and row["what"] in page for row in rows)
    images, training = found["tables"]["miniature: images"], found["tables"]["miniature: training"]
    assert float(images[1]["counted"]) == pytest.approx(1, abs=0.1), "as many rows, hardly more"
    assert float(training[2]["counted"]) == pytest.approx(1, abs=0.01), "micro-batches do the work of the batch"


def test_waiting_is_measured_on_the_real_commands(tmp_path: Path) -> None:
    rows = startup_rows(CONFIG, Commands(CONFIG, ROOT / "scripts", tmp_path))
    assert [row.what.split(",")[0] for row in rows] == [
        "from the command to the first training step",
        "from the command to the first image (25 steps)",
    ]
    assert (tmp_path / "first-0" / "concept-steps-1.safetensors").exists()


def test_precision_rows_compare_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 2, "LAST": 1, "SEEDS": range(2), "IMAGE_STEPS": 2}.items():
        monkeypatch.setattr(numerics, name, value)
    curve, tensors, drawn, learned = numerics.numerics_rows(CONFIG, Commands(CONFIG, ROOT / "scripts", tmp_path))
    assert "2 of 2 losses finite" in curve.note
    assert tensors.value == "float32"
    assert 0 < float(drawn.value.split()[0]) < 64 and 0 < float(learned.value.split()[0]) < 64
