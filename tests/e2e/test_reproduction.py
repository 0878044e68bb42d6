"""scripts/reproduce_paper.py from a plan to the page: by two workers, again, in part, stopped and gone on with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest
from load_script import SCRIPTS, load_script
from PIL import Image
from tiny_plan import write_plan

from neti.training.evaluation.images import read_generated
from neti.utils.images.png import read_metadata

SCRIPT = SCRIPTS / "reproduce_paper.py"

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("reproduce_paper")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_backbone_folder: Path) -> Path:
    """A folder with a plan that two workers have done from nothing."""
    folder = tmp_path_factory.mktemp("reproduction")
    references = [f"{name} | {folder / 'photos' / name}" for name in ("bear", "cube")]
    more = {"drawn": ["locked | neti | key_lock=true"], "place_prompts": ["{} on a beach"]}
    plan = write_plan(folder, tiny_backbone_folder, references=references, **more)
    command = [sys.executable, str(SCRIPT), "--config_path", str(plan), "--jobs.workers", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert result.returncode == 0, result.stderr
    (folder / "output.txt").write_text(result.stdout)
    return folder


def results(folder: Path) -> dict[str, int]:
    """Name of a finished job -> when its result was written."""
    return {path.name: path.stat().st_mtime_ns for path in (folder / "work" / "results").glob("*.json")}


def pages(folder: Path) -> tuple[str, str]:
    """The page, and the one behind it."""
    return tuple((folder / "docs" / f"reproduction{name}.md").read_text() for name in ("", "_tables"))  # type: ignore[return-value]


def changed(folder: Path, before: dict[str, int]) -> set[str]:
    """The jobs that were done since `before`, without their hashes."""
    return {name.rpartition("-")[0] for name, time in results(folder).items() if before.get(name) != time}


def test_two_workers_do_every_job_once_and_write_the_page(folder: Path) -> None:
    output = (folder / "output.txt").read_text()
    names = re.findall(r"^\[\d+/\d+\] (\S+): \d+ s; ", output, re.MULTILINE)
    assert len(names) == len(set(names)) == len(results(folder)) == 8 + 22
    records = [json.loads(path.read_text()) for path in (folder / "work" / "results").glob("*.json")]
    assert len({record["worker"] for record in records}) == 2, "both worked"
    assert output.count("done: ") == 1

    page, tables = pages(folder)
    assert "# The papers' claims, tested on `tiny_backbone" in page and "](reproduction_tables.md)" in page
    for text in (page, tables):
        named = (f"--config_path {folder / 'plan.yaml'}", str(folder / "train.yaml"), str(folder / "judge"))
        for part in named:
            text = text.replace(part, "")
        assert str(folder) not in text, "no path of this machine but those the plan names"
    heads = (
        "| by likeness to fresh photos | by likeness to the photos | by likeness to fresh photos, prompts of a place |"
    )
    assert heads in page and 'the same tests on "{} on a beach" alone' in page
    verdicts = re.findall(r"^\| \((\w)\) \| .* \| \*\*(?:confirmed|refuted|undecided|not tested)", page, re.MULTILINE)
    assert "".join(verdicts) == "abcdefghijk"
    assert "| (f) | A smaller concept costs likeness | **not tested** |" in page
    for text, pictures in ((page, 1 + 5), (tables, 1)):
        links = re.findall(r"!\[.*?\]\((.*?)\)", text)
        assert len(links) == pictures, "the curve, claims (a), (c), (d), (e) and (g); the plot of steps"
        for link in links:
            with Image.open(folder / "docs" / link) as picture:
                assert picture.width > 150
    assert "| xti | 1e+30 | - | - | - | diverged |  |" in tables and "| **xti** | **0.01** |" in tables
    assert re.search(r"^\| steps \| neti \| neti minus xti \|\n\|.*\n\| 1 \| -?\d\.\d{3} \[", tables, re.MULTILINE)
    assert re.search(r"^\| locked \| 2 \| -?\d\.\d{3} \[", tables, re.MULTILINE)
    assert "| locked | neti, drawn with `key_lock=True` |" in tables and "are not finished" not in tables


def test_numbers_of_the_page_are_those_of_the_images(folder: Path) -> None:
    """The folders are what compute_metrics.py reads, and their scores make the rows."""
    work = folder / "work"
    record = json.loads((work / "metrics.json").read_text())
    [row] = [r for r in record["rows"] if (r["method"], r["concept"], r["truncation"]) == ("neti", None, None)]
    [row_of_bear] = [r for r in record["rows"] if (r["method"], r["concept"], r["truncation"]) == ("xti", "bear", None)]
    stored = [json.loads(path.read_text()) for path in (work / "results").glob("main.xti.bear.*.step2.full-*.json")]
    assert row_of_bear["image_similarity"]["mean"] == pytest.approx(sum(stored[0]["result"]["image_similarity"]) / 2)
    assert row["concepts"] == 2 and row["images"] == 4
    by_measure = json.loads((work / "claims.json").read_text())["claims"]
    [all_prompts, *_, places] = [claims[4]["tests"][0]["estimate"]["mean"] for claims in by_measure.values()]
    assert all_prompts != places == pytest.approx(gain_over_the_word(work), abs=1e-9)
    assert f"{row['image_similarity']['mean']:.3f} [" in pages(folder)[1]
    [images] = (work / "images").glob("main.xti.bear.*.step2-*")
    found = read_generated([images])
    assert len(found.images) == 2 and found.recipe["placeholder"] == "<bear>"


def gain_over_the_word(work: Path) -> float:
    """Likeness of v_base alone minus that of the word, by the second of the two prompts."""
    found = []
    for name in ("bear", "cube"):
        [path] = (work / "results").glob(f"main.neti.{name}.*bypass_off.full-*.json")
        [word] = (work / "results").glob(f"word.{name}.full-*.json")
        own, other = (json.loads(each.read_text())["result"] for each in (path, word))
        found.append(own["reference_similarity"][1] - other["word"]["reference_similarity"][1])
    return sum(found) / 2


def test_without_its_bypass_a_concept_draws_something_else(folder: Path) -> None:
    def pixels(name: str) -> bytes:
        [path] = (folder / "work" / "images").glob(f"main.neti.bear.*{name}-*/A photo of a {{}}/0.png")
        assert (read_metadata(path) or {})["recipe"]["concept"].endswith("bypass off") == ("bypass" in name)
        return Image.open(path).tobytes()

    tried = json.loads((folder / "work" / "claims.json").read_text())["search"]["tried"]
    assert {(each["method"], each["rate"], each["step"]) for each in tried} == {
        *(("neti", 1e-2, step) for step in (1, 2)),
        *(("xti", rate, 2) for rate in (1e-2, 1e30)),
    }
    [off] = (folder / "work" / "images").glob("main.neti.bear.*bypass_off-*")
    step = off.name.split(".")[-2]
    assert pixels(f"{step}") != pixels(f"{step}.bypass_off")


def call(script: ModuleType, folder: Path, *arguments: str) -> int:
    return script.main(["--config_path", str(folder / "plan.yaml"), *arguments])


def test_a_second_call_keeps_everything_and_redo_does_what_it_names(
    script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(folder)
    assert call(script, folder, "--remarks", "Bears are *alike*.") == 0
    assert changed(folder, before) == set()
    assert "\n\n**What we read in it.** Bears are *alike*.\n\n![Text" in pages(folder)[0]
    assert call(script, folder, "--only", "main.xti.bear.*", "--redo", "main.xti.bear.*.train") == 0
    [name] = changed(folder, before)
    assert name.startswith("main.xti.bear.seed0.rate0.01.train")
    assert call(script, folder, "--only", "word.cube.*", "--redo", "word.cube.full") == 0
    assert changed(folder, before) == {name, "word.cube.full"}
    capsys.readouterr()
    assert call(script, folder, "--only", "main.xti.*.rate1e+30.*") == 2
    assert "matches no job of the settings that were chosen" in capsys.readouterr().err


def test_pages_from_what_is_finished(script: ModuleType, folder: Path) -> None:
    [path] = (folder / "work" / "results").glob("main.neti.cube.*.step*.truncation4.full-*.json")
    aside = path.rename(folder / path.name)
    before = results(folder)
    assert call(script, folder, "--report", "true") == 0
    assert results(folder) == before, "no job is done"
    tables = pages(folder)[1]
    assert "1 jobs of the plan are not finished" in tables
    assert "| neti | 1 |" in tables and "| xti | 1 |" in tables, "one concept has all images of neti"
    aside.rename(path)


def test_dry_run_writes_nothing(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    assert call(script, folder, "--dry_run", "--work_dir", str(tmp_path / "work")) == 0
    assert not (tmp_path / "work").exists()


def test_a_training_stopped_by_a_signal_goes_on_where_it_was(
    script: ModuleType, tmp_path: Path, tiny_backbone_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plan(tmp_path, tiny_backbone_folder, methods=["xti | 1e-2 | 2 12 | --model.method xti"])
    work = tmp_path / "work"
    only = "search.xti.ball.seed0.rate0.01.train"
    watcher = threading.Thread(target=_interrupt_after, args=(work / "trained", "*/concept-steps-2.safetensors"))
    watcher.start()
    assert call(script, tmp_path, "--only", only) == 130
    watcher.join()
    assert "the same command goes on" in capsys.readouterr().out
    assert not list((work / "results").glob("*.json"))
    assert call(script, tmp_path, "--only", only) == 0
    log = (work / "logs" / f"{only.removesuffix('.train')}.train.log").read_text()
    assert re.search(r"stopped by SIGTERM after step \d+, all saved", log) and "resumed from" in log
    [folder] = (work / "trained").iterdir()
    assert {path.name for path in folder.glob("*.safetensors")} == {f"concept-steps-{n}.safetensors" for n in (2, 12)}
    assert not (folder / "checkpoints").exists(), "a finished run resumes from nothing"


def _interrupt_after(folder: Path, pattern: str) -> None:
    """Send this process a Ctrl-C once a file is there."""
    for _ in range(12_000):
        if any(folder.glob(pattern)):
            os.kill(os.getpid(), signal.SIGINT)
            return
        time.sleep(0.01)
