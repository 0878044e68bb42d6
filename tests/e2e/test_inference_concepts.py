"""`scripts/inference.py` with several concepts, mixtures, style mixing and plain words, on a tiny random model."""

from __future__ import annotations

import importlib.util
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from frames import created
from PIL import Image

from neti.models.attention.layers import cross_attention_layers
from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.conditioning.composition import AnyConcept, Mixture, Rule, style_mixture
from neti.models.generation.sampling import SamplingConfig, decode, denoise, initial_latents, prepare_conditioning
from neti.models.methods import METHODS, Method
from neti.utils.hashing import file_hash
from neti.utils.images.png import read_metadata

SCRIPT = Path(__file__).parents[2] / "scripts" / "inference.py"
REFERENCE = Path(__file__).parents[1] / "data" / "reference"
BOTH = "A photo of {mug} next to {cat:8}"
SAMPLING = SamplingConfig(steps=2)


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        assert self.code == 2, self.err
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


Run = Callable[..., Result]


def learned(backbone: Backbone, kind: str, seed: int) -> Method:
    method_class = METHODS[kind]
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(backbone.frame.text_width, generator=generator)
    config = method_class.config_class()
    return created(method_class, config, 16, embedding, generator).eval()


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory, tiny_backbone_folder: Path) -> dict[str, Path]:
    """Three concepts of the tiny model that all call themselves <concept>; `cat` lies in the folder of its run."""
    backbone = Backbone.from_pretrained(str(tiny_backbone_folder), components=())
    folder = tmp_path_factory.mktemp("concepts")
    places = {"mug": folder / "mug.safetensors", "cat": folder / "run", "word": folder / "word.safetensors"}
    (folder / "run").mkdir()
    (folder / "config.yaml").write_text(f"model: {{pretrained_model_name_or_path: {tiny_backbone_folder}}}")
    files = {**places, "cat": folder / "run" / "concept-steps-30.safetensors"}
    kinds = {"mug": "neti", "cat": "neti", "word": "textual_inversion"}
    for seed, (name, file) in enumerate(files.items()):
        method = learned(backbone, kinds[name], seed)
        Concept(method, "<concept>", "toy", {"base_model": str(tiny_backbone_folder)}).save(file)
    return places


@pytest.fixture
def run(tmp_path: Path, concepts: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> Run:
    spec = importlib.util.spec_from_file_location("inference_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run_script(**keys: object) -> Result:
        config: dict[str, object] = {
            "concepts": {name: str(path) for name, path in concepts.items()},
            "inference_dir": str(tmp_path / "images"),
            "prompts": [BOTH],
            "seeds": "0-1",
            "num_denoising_steps": 2,
            "torch_dtype": "fp32",
            "device": "cpu",
        }
        given = {key: value for key, value in {**config, **keys}.items() if value is not None}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")
        capsys.readouterr()
        code = script.main(["--config_path", str(tmp_path / "config.yaml")])
        return Result(code, *capsys.readouterr())

    return run_script


def succeed(result: Result) -> str:
    assert result.code == 0, result.err
    return result.out


def by_hand(backbone: Backbone, prompt: str, concepts: dict[str, AnyConcept], seed: int, **kwargs: Any) -> np.ndarray:
    conditioning = prepare_conditioning(backbone, prompt, concepts, SAMPLING, **kwargs)
    latents = denoise(backbone, conditioning, initial_latents(backbone, [seed], SAMPLING), SAMPLING)
    return np.asarray(decode(backbone, latents)[0]).astype(int)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def close(shown: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(shown - expected).max() <= 1)  # batches round differently


def methods(concepts: dict[str, Path]) -> dict[str, Method]:
    files = {**concepts, "cat": concepts["cat"] / "concept-steps-30.safetensors"}
    return {name: Concept.load(file).method for name, file in files.items()}


def test_concepts_are_bound_by_name_whatever_their_placeholder(
    run: Run, tmp_path: Path, concepts: dict[str, Path], tiny_backbone_folder: Path
) -> None:
    twice = "{mug} and {mug}, {word}"
    assert "4 images" in succeed(run(prompts=[BOTH, twice]))
    backbone, method = Backbone.from_pretrained(str(tiny_backbone_folder)), methods(concepts)
    cut = Mixture([Rule(method["cat"], truncation=8)])
    folders = {path.name[:12]: path for path in (tmp_path / "images").iterdir()}
    both = folders["A photo of {"]
    for seed in (0, 1):
        expected = by_hand(backbone, BOTH, {"{mug}": method["mug"], "{cat:8}": cut}, seed)
        assert close(pixels(both / f"{seed}.png"), expected)
    expected = by_hand(backbone, twice, {"{mug}": method["mug"], "{word}": method["word"]}, 0)
    assert close(pixels(folders["{mug} and {m"] / "0.png"), expected)

    record = read_metadata(both / "0.png") or {}
    assert record["recipe"]["concepts"] == {
        "mug": file_hash(concepts["mug"]),
        "cat": file_hash(concepts["cat"] / "concept-steps-30.safetensors"),
    }
    assert (record["recipe"]["concept"], record["recipe"]["placeholder"]) == ("", "")
    assert record["made_with"]["concept_files"] == ["mug.safetensors", "concept-steps-30.safetensors"]

    fewer = {name: str(path) for name, path in concepts.items() if name != "word"}
    assert "2 there already, 0 to make" in succeed(run(concepts=fewer)), "a concept not named changes nothing"
    [error] = run(concepts={**fewer, "mug": str(concepts["word"])}).errors
    assert "made from another recipe (concepts " in error


def test_rules_say_which_concept_speaks_where(
    run: Run, tmp_path: Path, concepts: dict[str, Path], tiny_backbone_folder: Path
) -> None:
    rules = [{"concept": "mug"}, {"concept": "cat", "layers": "OUT06-OUT11", "timesteps": "0-600", "truncation": 16}]
    succeed(run(prompts=["{blend}"], mixtures={"blend": rules}, seeds=3))
    backbone, method = Backbone.from_pretrained(str(tiny_backbone_folder)), methods(concepts)
    outer = Rule(method["cat"], layers=frozenset(range(10, 16)), timesteps=(0, 600), truncation=16)
    expected = by_hand(backbone, "{blend}", {"{blend}": Mixture([Rule(method["mug"]), outer])}, 3)
    image = tmp_path / "images" / "{blend}" / "3.png"
    assert close(pixels(image), expected)
    first, second = (read_metadata(image) or {})["recipe"]["concepts"]["blend"]
    assert (first["layers"], first["timesteps"], first["truncation"]) == ("all", [0, 999], None)
    assert second["layers"] == [f"OUT{n:02d}" for n in range(6, 12)] and second["timesteps"] == [0, 600]


def test_style_mixing_makes_the_papers_grid(
    run: Run, tmp_path: Path, concepts: dict[str, Path], tiny_backbone_folder: Path
) -> None:
    style = {"geometry": "mug", "appearance": "cat", "mixing_start": [700, 300]}
    keys: dict[str, Any] = {"style_mixing": style, "prompts": ["A photo of a {}", "{word}"]}
    out = succeed(run(**keys))
    assert "10 images" in out, "two concepts and two starts, and the prompt without {}; two seeds each"
    images = tmp_path / "images"
    grid = images / "A photo of a {}" / "style_mixing.png"
    shown = (read_metadata(grid) or {})["images"]
    names = ["{mug}", "{cat}", "{mug-cat-700}", "{mug-cat-300}"]
    assert [[(i["prompt"], i["seed"]) for i in row] for row in shown] == [
        [(f"A photo of a {name}", seed) for name in names] for seed in (0, 1)
    ]
    with Image.open(grid) as image:
        assert 4 * 64 < image.width < 6 * 64 and 2 * 64 < image.height < 5 * 64
    assert str(grid.parent) in out.splitlines() and str(images / "{word}") in out.splitlines()

    backbone, method = Backbone.from_pretrained(str(tiny_backbone_folder)), methods(concepts)
    mixture = style_mixture(method["mug"], method["cat"], cross_attention_layers(backbone.unet), 700)
    made = pixels(images / "A photo of a {mug-cat-700}" / "1.png")
    assert close(made, by_hand(backbone, "A photo of a {x}", {"{x}": mixture}, 1))
    before = grid.stat().st_mtime_ns
    assert "10 there already, 0 to make" in succeed(run(**keys))
    assert grid.stat().st_mtime_ns == before


def test_a_word_needs_no_concept(run: Run, tmp_path: Path, tiny_backbone_folder: Path) -> None:
    keys: dict[str, Any] = {"concepts": None, "word": "toy", "pretrained_model_name_or_path": str(tiny_backbone_folder)}
    assert "the word 'toy', no concept" in succeed(run(**keys, prompts=["A photo of a {}"]))
    folder = tmp_path / "images" / "A photo of a {}"
    backbone = Backbone.from_pretrained(str(tiny_backbone_folder))
    assert close(pixels(folder / "1.png"), by_hand(backbone, "A photo of a toy", {}, 1))
    recipe = (read_metadata(folder / "1.png") or {})["recipe"]
    assert (recipe["prompt"], recipe["word"], recipe["concept"]) == ("A photo of a {}", "toy", "")
    [error] = run(**{**keys, "word": "cat"}, prompts=["A photo of a {}"]).errors
    assert "word 'toy' there, 'cat' now" in error
    assert "has no {}; the word 'toy' stands for {}" in run(**keys, prompts=["a toy"]).errors[0]
    assert "names {mug}" in run(**keys, prompts=["a {} with {mug}"]).errors[0]


def test_a_concept_of_the_public_code_beside_one_of_ours(run: Run, tmp_path: Path) -> None:
    with tarfile.open(REFERENCE / "tiny-sd.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    shutil.copytree(REFERENCE.parent / "tokenizer", tmp_path / "tiny-sd" / "tokenizer")
    base = str(tmp_path / "tiny-sd")
    ours = tmp_path / "ours.safetensors"
    Concept(learned(Backbone.from_pretrained(base, components=()), "xti", 0), "<toy>", "toy").save(ours)
    theirs = REFERENCE / "default" / "mapper-steps-7.pt"
    keys: dict[str, Any] = {"concepts": {"a": str(theirs), "b": str(ours)}, "prompts": ["{a} next to {b}"], "seeds": 0}
    [error] = run(**keys).errors
    assert "ours.safetensors does not name its base model" in error
    succeed(run(**keys, pretrained_model_name_or_path=base))
    record = read_metadata(tmp_path / "images" / "{a} next to {b}" / "0.png") or {}
    names = ["mapper-steps-7.pt", "learned_embeds-steps-7.bin", "ours.safetensors"]
    assert record["made_with"]["concept_files"] == names


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompts": ["A {dog}", "A {mug:129}", "A photo"]}, ["{dog}", "0..128", "'A photo' has no {mug}"]),
        (
            {"concepts": {"mug": "nowhere.safetensors", "cat": "gone"}},
            ["concepts.mug: the concept file nowhere.safetensors does not exist", "concepts.cat: no concept at gone"],
        ),
        ({"concepts": {"mug": "mapper-steps-7.pt"}}, ["needs learned_embeds-steps-7.bin beside it"]),
        (
            {"mixtures": {"a": [{"concept": "mug", "layers": "OUT6"}], "b": [{"concept": "mug", "layers": "IN01"}]}},
            ["mixtures.a: layers 'OUT6'", "mixtures.b: no rule is for IN02, timesteps 0-999"],
        ),
        (
            {"mixtures": {"a": [{"concept": "word", "truncation": 3}]}},
            ["mixtures.a: truncation 3: a concept of method"],
        ),
        ({"truncation_idxs": 3, "prompts": ["{word}"]}, ["cannot be truncated"]),
        (
            {"style_mixing": {"geometry": "mug", "appearance": "cat", "geometry_layers": "IN3"}},
            ["style_mixing: layers 'IN3'"],
        ),
        ({"prompts": [f"{'very ' * 100} {{mug}}"]}, ["tokens"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_mistakes_are_told_all_at_once(run: Run, tmp_path: Path, keys: dict[str, Any], message: list[str]) -> None:
    errors = run(**keys).errors
    assert len(errors) == len(message), errors
    assert all(words in error for words, error in zip(message, errors, strict=True)), errors
    assert not list(tmp_path.rglob("*.png"))


def test_concepts_of_two_base_models_need_one_named(
    run: Run, tmp_path: Path, concepts: dict[str, Path], tiny_backbone_folder: Path
) -> None:
    other = Concept.load(concepts["mug"])
    other.metadata["base_model"] = "some/model"
    other.save(tmp_path / "other.safetensors")
    keys: dict[str, Any] = {
        "concepts": {"mug": str(concepts["mug"]), "cat": str(tmp_path / "other.safetensors")},
        "seeds": 0,
    }
    [error] = run(**keys).errors
    assert "{cat} on some/model" in error and "pass --pretrained_model_name_or_path" in error
    succeed(run(**keys, pretrained_model_name_or_path=str(tiny_backbone_folder)))
