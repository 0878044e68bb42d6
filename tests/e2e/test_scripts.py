"""Every script answers a mistake with one line and exit code 2, and none can forget to: new ones are named here too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from neti.utils.images.png import write_png

pytestmark = pytest.mark.e2e
SCRIPTS = Path(__file__).parents[2] / "scripts"
NO_CONFIG = ["--config_path", "none.yaml"]
MISTAKES = {
    "benchmark": NO_CONFIG,
    "check_wheel": ["dist"],
    "compute_metrics": NO_CONFIG,
    "concept": ["info", "none.safetensors"],
    "inference": NO_CONFIG,
    "make_concepts": ["--font", "none.ttf"],
    "make_overview": ["none"],
    "measure_mixing": NO_CONFIG,
    "miniature_report": NO_CONFIG,
    "pretrain_miniature": NO_CONFIG,
    "reproduce_paper": NO_CONFIG,
    "train": NO_CONFIG,
}


def test_every_script_is_run_here() -> None:
    assert {path.stem for path in SCRIPTS.glob("*.py")} == MISTAKES.keys()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), *MISTAKES[name]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    [line] = done.stderr.splitlines()
    assert (line.startswith("error: ") and "none" in line) or name == "check_wheel"
    assert list(tmp_path.iterdir()) == [], "nothing is written before a mistake is told"


@pytest.mark.parametrize("name", MISTAKES)
def test_its_exit_code_is_that_of_a_wrapped_main(name: str) -> None:
    tree = ast.parse((SCRIPTS / f"{name}.py").read_text(encoding="utf-8"))
    [main] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert [ast.unparse(decorator) for decorator in main.decorator_list] == ["exit_on_user_error"]
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    sys.exit(main())"


def test_an_overview_shows_a_seed_that_is_there_and_replaces_nothing_foreign(tmp_path: Path) -> None:
    recipe = {"prompt": "a {}", "truncation": None, "seed": 4}
    write_png(Image.new("RGB", (64, 64)), tmp_path / "images" / "a {}" / "4.png", {"recipe": recipe})

    def overview(*options: str) -> tuple[int, str]:
        command = [sys.executable, str(SCRIPTS / "make_overview.py"), str(tmp_path / "images"), *options]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stderr

    code, told = overview("--seed", "5")
    assert code == 2 and told.endswith("has images of the seeds 4\n")
    assert overview() == (0, "") == overview(), "its own picture is made again"
    output = tmp_path / "images" / "overview.png"
    Image.new("RGB", (8, 8)).save(output)
    foreign = output.read_bytes()
    code, told = overview()
    assert code == 2 and "is left as it is" in told and output.read_bytes() == foreign
