"""The rules of the house: which way imports run, how modules import, and that every folder is packaged."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ["utils", "models", "training", "scripts"]  # each may import itself and what stands before it
FILES = {path: path.relative_to(ROOT).parts[0] for layer in LAYERS for path in (ROOT / layer).rglob("*.py")}


def imported_layers(path: Path) -> dict[str, int]:
    """Layer -> line of an import of it, with relative imports resolved."""
    found = {}
    package = ["neti", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            names = [".".join([*stem, alias.name]) for alias in node.names]
        for name in names:
            parts = name.split(".")
            layer = parts[1] if parts[0] == "neti" and len(parts) > 1 else parts[0]
            if layer in LAYERS:
                found[layer] = node.lineno
    return found


def test_the_walk_sees_the_project():
    assert len(FILES) > 40
    assert imported_layers(ROOT / "training" / "coach" / "trainer.py").keys() >= {"utils", "models", "training"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    allowed = LAYERS[: LAYERS.index(FILES[path]) + 1]
    for layer, line in imported_layers(path).items():
        assert layer in allowed, f"{path.relative_to(ROOT)}:{line} imports {layer}: only {allowed} are below it"


@pytest.mark.parametrize("path", [path for path, layer in FILES.items() if layer != "scripts"], ids=lambda p: p.stem)
def test_library_modules_import_each_other_relatively(path):
    """An absolute import could make a second copy of a module when a script runs from the project's folder."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            assert node.module.split(".")[0] not in {"neti", *LAYERS}, f"{path.name}:{node.lineno}"


def test_every_folder_with_modules_is_packaged():
    folders = {path.parent for path, layer in FILES.items() if layer != "scripts"}
    above = {parent for folder in folders for parent in folder.parents if ROOT in parent.parents}
    missing = [str(folder.relative_to(ROOT)) for folder in folders | above if not (folder / "__init__.py").exists()]
    assert not missing, f"{missing} have no __init__.py: installed editable they work, in a wheel they are gone"


UNET_CALLERS = {
    Path("models/backbone/denoiser.py"),  # the only caller
    Path("training/miniature/pretraining/unet.py"),  # trains the U-Net itself
    Path("training/studies/benchmark/training.py"),  # the stock U-Net, which everything is compared with
}


def test_the_denoiser_is_the_only_caller_of_a_unet():
    calls = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                keywords = {keyword.arg for keyword in node.keywords}
                if called == "unet" or "encoder_hidden_states" in keywords:
                    calls[path.relative_to(ROOT)] = node.lineno
    assert Path("models/backbone/denoiser.py") in calls, "the walk sees it"
    assert calls.keys() <= UNET_CALLERS, f"only the Denoiser calls a U-Net: {calls}"


def test_the_page_holds_no_logic_of_its_own():
    """What can be tested without a browser is elsewhere, so the page stays short."""
    files = [ROOT / "scripts" / "app.py", *(ROOT / "training" / "app" / "page").glob("*.py")]
    assert len(files) > 6
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files) < 400


def test_nothing_but_its_script_imports_the_app():
    app = ROOT / "training" / "app"
    for path in FILES:
        if not path.is_relative_to(app) and path != ROOT / "scripts" / "app.py":
            assert "training.app" not in path.read_text(encoding="utf-8"), path


def test_a_folder_shows_under_ten_names():
    """What a reader sees of a folder with `ls`."""
    for folder in {path.parent for path in FILES} - {ROOT / "scripts"}:
        names = {entry.name for entry in folder.iterdir()} - {"__init__.py", "py.typed", "__pycache__"}
        assert len(names) < 10, f"{folder.relative_to(ROOT)} has {len(names)} entries: {sorted(names)}"


def test_versions_are_pinned():
    for name in ("requirements.txt", "requirements-app.txt", "requirements-cluster.txt", "requirements-dev.txt"):
        lines = (ROOT / "environment" / name).read_text().splitlines()
        wanted = [line for line in lines if line and not line.startswith("#")]
        assert wanted and all("==" in line for line in wanted)


def test_an_installed_wheel_asks_for_versions_with_an_end(tmp_path):
    """Of the libraries whose internals are used, the next minor version could break it."""
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path], cwd=ROOT, check=True)
    always, _, extras = (tmp_path / "neti.egg-info" / "requires.txt").read_text().partition("[")
    wanted = always.split()
    assert "cluster]\nray[serve]<3,>=" in extras, "Ray is asked for by those who have a cluster"
    assert extras.startswith("app]\ngradio<"), "and Gradio by those who want the page"
    pins = [line for line in (ROOT / "environment" / "requirements.txt").read_text().splitlines() if "==" in line]
    assert len(wanted) == len(pins)
    assert all(">=" in line and "<" in line for line in wanted)
    for name in ("torch", "diffusers", "transformers"):
        pin = next(line for line in pins if line.startswith(f"{name}=="))
        major, minor, _ = pin.partition("==")[2].split(".")
        assert f"{name}<{major}.{int(minor) + 1},>={pin.partition('==')[2]}" in wanted


def test_supported_python():
    assert sys.version_info >= (3, 10)
