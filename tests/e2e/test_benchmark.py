"""scripts/benchmark.py on the miniature, at its smallest; what it finds is not judged here."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from neti.training.studies.benchmark import commands as benchmarked
from neti.training.studies.benchmark.commands import Commands, numerics_rows, startup_rows
from neti.training.studies.benchmark.config import BenchmarkConfig
from neti.training.studies.benchmark.report import write_benchmark
from neti.training.studies.page import measured_part
from neti.utils.config.parsing import parse_config

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
CONFIG = BenchmarkConfig(device="cpu", repeats=1, train_config=ROOT / "input_configs" / "train_miniature.yaml")


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts" / "benchmark.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
    shutil.copy(ROOT / "docs" / "performance.md", tmp_path)
    options = {
        "name": "tiny",
        "sections": "[arithmetic, sampling, perfusion, serving, training, variants, memory]",
        "requests": 2,
        "resolution": 32,
        "repeats": 1,
        "batch": 2,
        "accumulation": 2,
        "seeds": 1,
        "sampling_steps": 2,
        "device": "cpu",
        "train_config": CONFIG.train_config,
        "work_dir": tmp_path / "work",
        "docs_dir": tmp_path,
    }
    return [f"--{key}={value}" for key, value in options.items()]


def test_the_script_writes_numbers_and_page(
    script: Any, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(argv) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "work" / "tiny.json").read_text())
    titles = ["training", "what may make a step faster", "images", "Perfusion", "serving", "memory"]
    assert list(found["tables"]) == ["sd14: arithmetic", *(f"miniature: {title}" for title in titles)]
    page = (tmp_path / "performance.md").read_text()
    assert "### cpu-sd14" in page, "the chapters of other machines stay"
    for title, rows in found["tables"].items():
        assert title in out and f"#### {title}" in page
        assert all(row["what"] in out and row["what"] in page for row in rows)
    training = found["tables"]["miniature: training"]
    assert float(training[1]["counted"]) == pytest.approx(1, abs=0.01), "micro-batches do the work of the batch"
    assert [row["what"].split(" / ")[0] for row in found["tables"]["miniature: what may make a step faster"]] == [
        "channels_last",
        "fused AdamW",
        "1000 steps of 2, extrapolated",
    ]


def test_each_section_is_written_before_the_next_is_measured(argv: list[str], tmp_path: Path) -> None:
    config = parse_config(BenchmarkConfig, argv)
    title, _ = next(write_benchmark(config, ROOT / "scripts"))
    assert list(json.loads((tmp_path / "work" / "tiny.json").read_text())["tables"]) == [title]
    own = measured_part(tmp_path / "performance.md")[1].partition("### tiny")[2]
    assert f"#### {title}" in own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--device=cuda:77", "device = 'cuda:77'"),
        ("--dtype=fp16", "dtype = fp16 needs a GPU"),
        ("--train_config=none.yaml", "train_config = none.yaml: no such file"),
        ("--train_config=README.md", "README.md"),
        ("--docs_dir=none", "none/performance.md cannot be read"),
        ("--resolution=100", "resolution = 100 must be a multiple of 8"),
        ("--batches=[]", "batches is empty"),
        ("--name=../tiny", "name = '../tiny' names a file"),
        ("--accumulation=3", "must be a multiple of accumulation = 3"),
        ("--batch=1e30", "batch = '1e30'"),
        ("--work_dir=README.md/x", "cannot write to work_dir README.md/x: Not a directory"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(
    script: Any,
    argv: list[str],
    tmp_path: Path,
    change: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert script.main([*argv, change]) == 2
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    assert line.startswith("error: ") and message in line and captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["performance.md"]


def test_waiting_is_measured_on_the_real_commands(tmp_path: Path) -> None:
    rows = startup_rows(CONFIG, Commands(CONFIG, ROOT / "scripts", tmp_path))
    assert [row.what.split(",")[0] for row in rows] == [
        "train.py --help / import torch",
        "inference.py --help / import torch",
        "imports of a training",
        "from the command to the first training step",
        "from the command to the first image (25 steps)",
    ]
    assert (tmp_path / "first-0" / "concept-steps-1.safetensors").exists()


def test_precision_rows_compare_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 2, "LAST": 1, "IMAGE_STEPS": 2}.items():
        monkeypatch.setattr(benchmarked, name, value)
    curve, drawn, learned = numerics_rows(CONFIG, Commands(CONFIG, ROOT / "scripts", tmp_path))
    assert "2 of 2 losses finite; the concept's tensors are float32" in curve.note
    assert 0 < float(drawn.value.split()[0]) < 64 and 0 < float(learned.value.split()[0]) < 64
