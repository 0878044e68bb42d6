"""What studies share: results and images are made once for what they depend on; concepts are learned when they lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from frames import created
from PIL import Image

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.methods import NeTI, NeTIConfig
from neti.training.miniature.world.objects import find_font
from neti.training.studies.config import StudyConfig
from neti.training.studies.study import Study
from neti.utils.errors import UserError


@pytest.fixture
def study(tmp_path: Path, tiny_backbone_folder: Path) -> Study:
    """On a tiny model and the miniature's metric model; one concept, and a training of one step."""
    try:
        find_font()
    except UserError:
        pytest.skip("the font Noto Color Emoji is not installed")
    (tmp_path / "train.yaml").write_text(
        "log: {exp_name: x}\n"
        "data: {train_data_dir: x, placeholder_token: x, resolution: 64, super_category_rule: mean}\n"
        "optim: {max_train_steps: 1, train_batch_size: 1, gradient_accumulation_steps: 1, seed: 0, device: cpu}\n"
    )
    (tmp_path / "concepts" / "police_car").mkdir(parents=True)
    Image.new("RGB", (64, 64), "black").save(tmp_path / "concepts" / "police_car" / "0.png")
    (tmp_path / "concepts" / "concepts.yaml").write_text("police_car: car\n")
    return Study(
        StudyConfig(
            sd=str(tiny_backbone_folder),
            concepts_dir=tmp_path / "concepts",
            train_config=tmp_path / "train.yaml",
            work_dir=tmp_path / "work",
            steps=1,
        )
    )


def test_a_place_that_cannot_be_written_to_is_named_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for key in ("work_dir", "docs_dir"):
        with pytest.raises(UserError, match=f"cannot write to {key} .*file.*: Not a directory"):
            Study(StudyConfig(sd="nowhere", **{key: tmp_path / "file"}))


def test_results_are_measured_once_per_inputs_and_damaged_ones_again(study: Study) -> None:
    calls = []

    def measure() -> dict[str, Any]:
        calls.append(1)
        return {"value": len(calls)}

    assert study.result("row", {"model": "x"}, measure) == {"value": 1}
    assert study.result("row", {"model": "x"}, measure) == {"value": 1}
    assert study.result("row", {"model": "y"}, measure) == {"value": 2}
    assert study.result("other", {"model": "x"}, measure) == {"value": 3}
    for path in (study.config.work_dir / "results").glob("other-*.json"):
        path.write_text("{")
    assert study.result("other", {"model": "x"}, measure) == {"value": 4}


def test_images_are_drawn_once_for_what_they_depend_on(study: Study, tiny_backbone: Backbone) -> None:
    method = created(NeTI, NeTIConfig(), 16, tiny_backbone.word_embedding("toy"), torch.Generator()).eval()
    folder = study.config.work_dir / "images"
    words = study.draw_words("a cat", [0, 1])
    [image] = study.draw([study.recipe("a {}")], {"{}": method}, ["one"])
    assert len(list(folder.iterdir())) == 3
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert [one.tobytes() for one in study.draw_words("a cat", [0, 1])] == [one.tobytes() for one in words]
    assert study.draw([study.recipe("a {}")], {"{}": method}, ["one"])[0].tobytes() == image.tobytes()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    study.draw([study.recipe("a {}")], {"{}": method}, ["another"])
    assert len(list(folder.iterdir())) == 4


def test_a_missing_concept_is_learned_once(study: Study) -> None:
    study.check(["police_car"])
    one = study.learned("police_car")
    assert (one.concept.placeholder, one.concept.super_category) == ("<police_car>", "car")
    files = {path: path.stat().st_mtime_ns for path in study.config.work_dir.rglob("*")}
    assert study.learned("police_car").digest == one.digest
    assert {path: path.stat().st_mtime_ns for path in study.config.work_dir.rglob("*")} == files


def test_what_is_there_and_what_could_be_learned_is_checked(study: Study, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no concept wolf"):
        study.check(["wolf"])
    (tmp_path / "train.yaml").write_text("log: {exp_nam: x}\n")
    with pytest.raises(UserError, match=r"log\.exp_nam"):
        study.check(["police_car"])
    (tmp_path / "train.yaml").unlink()
    with pytest.raises(UserError, match="there is no train_config"):
        study.check(["police_car"])
    assert not study.config.work_dir.exists()


def test_a_given_concept_is_taken(study: Study, tiny_backbone: Backbone, tmp_path: Path) -> None:
    method = created(NeTI, NeTIConfig(), 16, tiny_backbone.word_embedding("toy"), torch.Generator()).eval()
    Concept(method, "<c>", "car", {"step": 7}).save(tmp_path / "given" / "police_car.safetensors")
    study.config = StudyConfig(**{**study.config.__dict__, "concept_files": tmp_path / "given"})
    assert study.learned("police_car").concept.metadata["step"] == 7
    assert not study.config.work_dir.exists()


def test_settings_name_models_and_not_places(study: Study) -> None:
    settings = study.settings()
    assert settings["metric model"].startswith("`miniature-judge` (digest ")
    assert str(Path(study.config.sd).parent) not in settings["model"]
