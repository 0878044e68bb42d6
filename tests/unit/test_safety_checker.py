"""The base model's safety checker: never without its own weights, in any form, at the precision of the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from model_files import make_counterfeit
from PIL import Image
from safetensors.torch import load_file, save_file

from neti.models.backbone.safety import SafetyChecker, has_safety_checker
from neti.utils.errors import UserError

PICTURES = [Image.new("RGB", (64, 64), color) for color in ("red", "white")]


@pytest.fixture(scope="module")
def checked(tiny_backbone_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_counterfeit(tmp_path_factory.mktemp("checked") / "sd", tiny_backbone_folder, pickles=False)


@pytest.fixture
def folder(checked: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checked, tmp_path / "model"))


def withholds_all(folder: Path) -> None:
    path = folder / "safety_checker" / "model.safetensors"
    low = {name: value - 2 if name.endswith("embeds_weights") else value for name, value in load_file(path).items()}
    save_file(low, path, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_judges_at_any_precision(folder: Path, dtype: torch.dtype) -> None:
    checker = SafetyChecker.from_pretrained(str(folder), dtype=dtype)
    assert {parameter.dtype for parameter in checker.checker.parameters()} == {dtype}
    assert checker.withholds(PICTURES) == [False, False]
    withholds_all(folder)
    assert SafetyChecker.from_pretrained(str(folder), dtype=dtype).withholds(PICTURES) == [True, True]


def test_the_names_of_2022_are_its_weights(folder: Path) -> None:
    """vision_model.vision_model in front; were they not found, random numbers would judge."""
    own = SafetyChecker.from_pretrained(str(folder)).checker.vision_model.embeddings.class_embedding
    stored = load_file(folder / "safety_checker" / "model.safetensors")
    assert torch.equal(own, stored["vision_model.vision_model.embeddings.class_embedding"])


def test_as_a_pickle(folder: Path) -> None:
    path = folder / "safety_checker" / "model.safetensors"
    torch.save(load_file(path), path.with_name("pytorch_model.bin"))
    path.unlink()
    assert SafetyChecker.from_pretrained(str(folder)).withholds(PICTURES) == [False, False]


@pytest.mark.parametrize("lost", ["concept_embeds_weights", "visual_projection.weight", "vision_model."])
def test_missing_weights_are_refused(folder: Path, lost: str) -> None:
    """With random numbers, or ones, in their place nearly everything would pass."""
    path = folder / "safety_checker" / "model.safetensors"
    rest = {name: value for name, value in load_file(path).items() if not name.startswith(lost)}
    save_file(rest, path, metadata={"format": "pt"})
    message = rf"cannot load its safety_checker .*weights are missing, such as {lost}.*--safety_checker false"
    with pytest.raises(UserError, match=message) as caught:
        SafetyChecker.from_pretrained(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file",
    ["safety_checker/model.safetensors", "safety_checker/config.json", "feature_extractor/preprocessor_config.json"],
)
def test_missing_files_are_refused(folder: Path, file: str) -> None:
    (folder / file).unlink()
    assert has_safety_checker(str(folder))
    with pytest.raises(UserError, match=rf"cannot load its {Path(file).parent.name} .*--safety_checker false"):
        SafetyChecker.from_pretrained(str(folder))


def test_a_model_that_lost_its_checker_is_not_one_without(folder: Path) -> None:
    shutil.rmtree(folder / "safety_checker")
    assert has_safety_checker(str(folder))
    with pytest.raises(UserError, match="cannot load its safety_checker"):
        SafetyChecker.from_pretrained(str(folder))
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "safety_checker": [None, None]}))
    assert not has_safety_checker(str(folder))
    index.unlink()
    assert not has_safety_checker(str(folder))
