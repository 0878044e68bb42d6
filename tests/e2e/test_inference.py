"""`scripts/inference.py` on a tiny random model: what it writes, what it skips, and what it refuses to touch."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from frames import created
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.methods import NeTI, NeTIConfig
from neti.utils.images.png import read_metadata

SCRIPT = Path(__file__).parents[2] / "scripts" / "inference.py"
REFERENCE = Path(__file__).parents[1] / "data" / "reference"
PROMPT = "A photo of a {}"


class Result(NamedTuple):
    """What a call of the script left: exit code, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line the user reads; transformers' loading bars may stand before it."""
        assert self.code == 2, self.err
        [line] = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert self.err.splitlines()[-1] == line, "something follows the error"
        return line


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def concept_path(tmp_path_factory: pytest.TempPathFactory, tiny_backbone_folder: Path) -> Path:
    """A random concept of the tiny model, as a training run would leave it at step 30."""
    backbone = Backbone.from_pretrained(str(tiny_backbone_folder), components=("text_encoder",))
    method = created(
        NeTI, NeTIConfig(), backbone.frame.num_places, backbone.word_embedding("toy"), torch.Generator().manual_seed(0)
    )
    path = tmp_path_factory.mktemp("run") / "concept-steps-30.safetensors"
    (path.parent / "config.yaml").write_text(f"model: {{pretrained_model_name_or_path: {tiny_backbone_folder}}}")
    Concept(method.eval(), "<toy>", "toy", {"base_model": str(tiny_backbone_folder)}).save(path)
    return path


@pytest.fixture
def run(tmp_path: Path, concept_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script's `main` on the tiny model with the given keys; two seeds and two steps by default."""
    spec = importlib.util.spec_from_file_location("inference_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run_script(**keys: object) -> Result:
        path = write_config(tmp_path, concept_path, **keys)
        capsys.readouterr()
        code = script.main(["--config_path", str(path)])
        return Result(code, *capsys.readouterr())

    return run_script


def write_config(tmp_path: Path, concept_path: Path, **keys: object) -> Path:
    config: dict[str, object] = {
        "input_dir": str(concept_path.parent),
        "inference_dir": str(tmp_path / "images"),
        "prompts": [PROMPT],
        "seeds": "0-1",
        "num_denoising_steps": 2,
        "torch_dtype": "fp32",
        "device": "cpu",
        "safety_checker": False,
    }
    config.update(keys)
    given = {key: value for key, value in config.items() if value is not None}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    return path


def succeed(result: Result) -> str:
    assert result.code == 0, result.err
    return result.out


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_writes_images_with_their_recipe_and_grids(run: Run, tmp_path: Path, tiny_backbone_folder: Path) -> None:
    other = "a {} über ☃: 50% / ..\\"
    succeed(run(prompts=[PROMPT, other], truncation_idxs=[None, 16], negative_prompt="blurry"))
    folders = {path.name: path for path in (tmp_path / "images").iterdir()}
    assert len(folders) == 2
    names = {
        f"{seed}{suffix}.{kind}" for seed in (0, 1) for suffix in ("", "_truncation_16") for kind in ("png", "json")
    }
    names |= {"grid.png", "grid_truncation_16.png", "truncations.png"}
    assert all(files(folder) == names for folder in folders.values())
    odd = next(folder for name, folder in folders.items() if "über" in name)
    assert json.loads((odd / "1_truncation_16.json").read_text(encoding="utf-8"))["recipe"]["prompt"] == other

    folder = folders[PROMPT]
    record = read_metadata(folder / "1_truncation_16.png")
    assert record == json.loads((folder / "1_truncation_16.json").read_text(encoding="utf-8"))
    assert record is not None
    recipe = record["recipe"]
    assert recipe.pop("concept").startswith("sha256:")
    assert recipe == {
        "prompt": PROMPT,
        "negative_prompt": "blurry",
        "seed": 1,
        "truncation": 16,
        "steps": 2,
        "guidance_scale": 7.5,
        "scheduler": "dpmsolver++",
        "base_model": str(tiny_backbone_folder),
        "base_revision": None,
        "placeholder": "<toy>",
        "torch_dtype": "fp32",
        "safety_checker": False,
        "concepts": None,
        "settings": None,
        "word": None,
        "width": None,
        "height": None,
    }
    assert record["made_with"]["concept_files"] == ["concept-steps-30.safetensors"]
    assert record["made_with"]["versions"]["torch"] == importlib.metadata.version("torch")

    shown = [pixels(folder / name) for name in ("0.png", "1.png", "0_truncation_16.png", "1_truncation_16.png")]
    assert all(image.shape == (64, 64, 3) for image in shown)
    assert all((a != b).any() for i, a in enumerate(shown) for b in shown[:i]), "seed or truncation has no effect"
    for name, rows in {"grid.png": 1, "grid_truncation_16.png": 1, "truncations.png": 2}.items():
        with Image.open(folder / name) as grid:
            assert grid.width > 2 * 64 and grid.height > rows * 64, name
            assert grid.height < (rows + 2) * 64, name


def test_an_image_does_not_depend_on_its_batch(run: Run, tmp_path: Path) -> None:
    succeed(run(seeds="0-2", batch_size=1, inference_dir=str(tmp_path / "one")))
    succeed(run(seeds="2,0,1", batch_size=3, inference_dir=str(tmp_path / "three")))
    for seed in range(3):
        one, three = (pixels(tmp_path / name / PROMPT / f"{seed}.png") for name in ("one", "three"))
        assert np.abs(one - three).max() <= 1


def test_a_rerun_makes_only_what_is_missing(run: Run, tmp_path: Path) -> None:
    succeed(run(truncation_idxs=8))
    folder = tmp_path / "images" / PROMPT
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "2 there already, 0 to make" in succeed(run(truncation_idxs=8))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before

    lost = folder / "1_truncation_8.png"
    old = pixels(lost)
    lost.unlink()  # as if the first run had been interrupted
    assert "1 there already, 1 to make" in succeed(run(truncation_idxs=8))
    assert (pixels(lost) == old).all()
    kept = folder / "0_truncation_8.png"
    assert kept.stat().st_mtime_ns == before[kept]


def test_more_seeds_extend_the_grid(run: Run, tmp_path: Path) -> None:
    succeed(run(seeds=[0]))
    grid = tmp_path / "images" / PROMPT / "grid.png"
    narrow = Image.open(grid).width
    assert "1 there already, 9 to make" in succeed(run(seeds="0-9"))
    with Image.open(grid) as image:
        assert image.width > 8 * 64 > narrow and image.height > 2 * 64


def test_another_recipe_in_the_same_place_is_refused(run: Run, tmp_path: Path) -> None:
    succeed(run())
    folder = tmp_path / "images" / PROMPT
    before = {path: path.read_bytes() for path in folder.iterdir()}
    result = run(guidance_scale=3.0, seeds="0-3")
    assert "guidance_scale 7.5 there, 3.0 now" in result.error and "inference_dir" in result.error
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_foreign_image_in_the_way_is_left_alone(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "images" / PROMPT / "1.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(path)
    result = run()
    assert "no recipe" in result.error
    assert Image.open(path).size == (4, 4) and files(path.parent) == {"1.png"}


def test_images_go_beside_the_concept_by_default(run: Run, tmp_path: Path, concept_path: Path) -> None:
    folder = tmp_path / "a run"
    folder.mkdir()
    shutil.copy(concept_path, folder / "concept-steps-7.safetensors")
    shutil.copy(concept_path, folder / "concept-steps-10.safetensors")
    assert "a local model called tiny_backbone0" in run(input_dir=str(folder), inference_dir=None).error
    shutil.copy(concept_path.with_name("config.yaml"), folder)  # a run's folder says where that lies
    succeed(run(input_dir=str(folder), inference_dir=None))
    assert (folder / "inference_10" / PROMPT / "0.png").is_file()
    succeed(run(input_dir=str(folder), inference_dir=None, iteration=7))
    assert (folder / "inference_7" / PROMPT / "0.png").is_file()


def test_a_concept_with_nan_is_refused_before_anything_is_drawn(run: Run, tmp_path: Path, concept_path: Path) -> None:
    with safe_open(concept_path, framework="pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, tmp_path / "diverged.safetensors", header)
    result = run(input_dir=None, concept=str(tmp_path / "diverged.safetensors"))
    assert "diverged.safetensors" in result.error and "holds NaN" in result.error
    assert not (tmp_path / "images").exists()


@pytest.fixture
def checked_backbone(tmp_path: Path, tiny_backbone_folder: Path) -> Path:
    """The tiny model with a safety checker that objects to everything."""
    folder = tmp_path / "checked"
    shutil.copytree(tiny_backbone_folder, folder)
    side = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(text_config=side, vision_config={**side, "image_size": 32, "patch_size": 16}, projection_dim=8)
    checker = StableDiffusionSafetyChecker(config)
    checker.concept_embeds_weights.data.fill_(-2.0)  # below any cosine
    checker.save_pretrained(folder / "safety_checker")
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder / "feature_extractor")
    return folder


def test_a_black_image_is_explained_by_the_safety_checker(run: Run, tmp_path: Path, checked_backbone: Path) -> None:
    out = succeed(run(pretrained_model_name_or_path=str(checked_backbone), safety_checker=True, seeds=[0]))
    path = tmp_path / "images" / PROMPT / "0.png"
    assert f"{path} is black: the base model's safety checker withheld the image" in out
    assert pixels(path).max() == 0
    assert (read_metadata(path) or {})["withheld_by"] == "safety checker"


@pytest.mark.parametrize("ordered", [True, False])
def test_a_truncation_without_nested_dropout_is_said(
    run: Run, tmp_path: Path, tiny_backbone_folder: Path, ordered: bool
) -> None:
    """The public code ignores the truncation of such a concept; here it is done, and its meaning is noted."""
    method = created(NeTI, NeTIConfig(use_nested_dropout=ordered), 16, torch.ones(32))
    Concept(method.eval(), "<toy>", "toy").save(tmp_path / "toy.safetensors")
    concept = {"concept": str(tmp_path / "toy.safetensors"), "pretrained_model_name_or_path": str(tiny_backbone_folder)}
    message = "note: <toy> was trained without nested dropout: its hidden units have no order"
    out = succeed(run(input_dir=None, seeds=[0], truncation_idxs=[None, 16], num_denoising_steps=1, **concept))
    assert (message in out) is not ordered
    out = succeed(run(input_dir=None, seeds=[0], truncation_idxs=None, num_denoising_steps=1, **concept))
    assert message not in out


def test_a_safety_checker_that_is_not_there_is_an_error(run: Run, tmp_path: Path) -> None:
    result = run(safety_checker=True)
    assert "has none" in result.error and not (tmp_path / "images").exists()


def test_from_the_command_line(tmp_path: Path, concept_path: Path) -> None:
    config = write_config(tmp_path, concept_path)
    command = [sys.executable, str(SCRIPT), "--config_path", str(config), "--seeds", "7", "--scheduler", "ddim"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert files(tmp_path / "images" / PROMPT) == {"7.png", "7.json", "grid.png"}


def test_a_concept_of_the_public_code(run: Run, tmp_path: Path) -> None:
    with tarfile.open(REFERENCE / "tiny-sd.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copytree(REFERENCE.parent / "tokenizer", tmp_path / "tiny-sd" / "tokenizer")
    base = str(tmp_path / "tiny-sd")
    succeed(run(input_dir=str(REFERENCE / "default"), seeds=[0], pretrained_model_name_or_path=base))
    record = read_metadata(tmp_path / "images" / PROMPT / "0.png") or {}
    assert record["made_with"]["concept_files"] == ["mapper-steps-7.pt", "learned_embeds-steps-7.bin"]


def test_a_concept_of_another_model_is_refused(run: Run, tmp_path: Path, tiny_backbone_folder: Path) -> None:
    result = run(input_dir=str(REFERENCE / "default"), pretrained_model_name_or_path=str(tiny_backbone_folder))
    assert "text width 768" in result.error
    assert not list((tmp_path / "images").rglob("*.png"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompts": ["A photo"]}, ["'A photo'", "{}"]),
        ({"prompts": None}, ["prompts"]),
        ({"prompts_file_path": "prompts.txt"}, ["prompts", "prompts_file_path"]),
        ({"prompts": None, "prompts_file_path": "nowhere.txt"}, ["nowhere.txt"]),
        ({"truncation_idxs": [None, 129]}, ["129", "0..128"]),
        ({"truncation_idxs": -1}, ["-1", "truncation_idxs"]),
        ({"truncation_idx": 3}, ["truncation_idx ", "truncation_idxs"]),
        ({"iteration": 31}, ["31", "30"]),
        ({"input_dir": "nowhere"}, ["nowhere"]),
        ({"input_dir": None, "concept": "nowhere.safetensors"}, ["nowhere.safetensors"]),
        ({"input_dir": None, "concept": str(SCRIPT)}, ["inference.py"]),
        ({"learned_embeds_path": "a.bin"}, ["holds no mapper-steps-N; name it too"]),
        ({"input_dir": None, "learned_embeds_path": "a.bin"}, ["learned_embeds_path", "mapper_checkpoint_path"]),
        ({"pretrained_model_name_or_path": "./no/such/folder"}, ["./no/such/folder"]),
        ({"scheduler": "dmp"}, ["'dmp'", "dpmsolver++"]),
        ({"torch_dtype": "fp8"}, ["fp8", "bf16"]),
        ({"device": "cuda:99"}, ["cuda:99"]),
        ({"seeds": "5-1"}, ["5-1"]),
        ({"num_denoising_steps": 0}, ["num_denoising_steps"]),
        ({"inference_dir": f"{SCRIPT}/images"}, ["images", "inference_dir"]),
        ({"prompts": [f"{'very ' * 100} old {{}}"]}, ["very", "tokens"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_told_in_one_line(run: Run, tmp_path: Path, keys: dict[str, object], message: list[str]) -> None:
    error = run(**keys).error
    assert all(word in error for word in message), error
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize("script", ["inference.py", "concept.py"])
def test_before_installation_the_install_command_is_told(script: str) -> None:
    command = [sys.executable, "-S", str(SCRIPT.with_name(script))]  # -S: without the installed packages
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "pip install -e ." in result.stderr
