"""Every script answers a mistake with one line and exit code 2, and none can forget to: new ones are named here too."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
SCRIPTS = Path(__file__).parents[2] / "scripts"
NO_CONFIG = ["--config_path", "none.yaml"]
MISTAKES = {
    "app": NO_CONFIG,
    "benchmark": NO_CONFIG,
    "check_wheel": ["dist"],
    "compute_metrics": NO_CONFIG,
    "concept": ["info", "none.safetensors"],
    "convert_elite": ["--base_model", "none", "--global_mapper", "none.pt", "--output", "out.safetensors"],
    "encode": NO_CONFIG,
    "inference": NO_CONFIG,
    "make_concepts": ["--font", "none.ttf"],
    "make_covariance": ["--model", "none", "--captions", "none.txt", "--output", "out.safetensors"],
    "make_masks": ["none", "mug"],
    "make_overview": ["none"],
    "measure_mixing": NO_CONFIG,
    "miniature_report": NO_CONFIG,
    "pretrain_miniature": NO_CONFIG,
    "reproduce_paper": NO_CONFIG,
    "train": NO_CONFIG,
    "train_many": NO_CONFIG,
    "train_elite": NO_CONFIG,
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
    assert list(tmp_path.iterdir()) == [], "nothing is written before a mistake is reported"


@pytest.mark.parametrize("name", sorted(MISTAKES.keys() - {"check_wheel"}))
def test_help_does_not_load_torch(name: str) -> None:
    """Which takes more than all the rest; so it comes at once."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{name!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPTS / f'{name}.py')!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    sys.exit(end.code or ('torch' in sys.modules and 'torch was loaded'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-300:]


@pytest.mark.parametrize("name", MISTAKES)
def test_its_exit_code_is_that_of_a_wrapped_main(name: str) -> None:
    tree = ast.parse((SCRIPTS / f"{name}.py").read_text(encoding="utf-8"))
    [main] = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert [ast.unparse(decorator) for decorator in main.decorator_list] == ["exit_on_user_error"]
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    sys.exit(main())"
