"""The miniature's report: measures on hand-made cases, results that are kept, and the whole of it on tiny models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from frames import created
from PIL import Image
from transformers import CLIPTokenizer

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.methods import METHODS
from neti.training.miniature.pretraining.clip import build, preprocessing
from neti.training.miniature.pretraining.config import CLIPSettings
from neti.training.miniature.report.config import ReportConfig
from neti.training.miniature.report.page import confusion, model_parts
from neti.training.miniature.report.report import write_report
from neti.training.miniature.report.table import rights, table_rows
from neti.training.miniature.report.zero_shot import (
    answers,
    choices,
    class_features,
    nearest,
    nearest_concept,
    retrieval_rates,
)
from neti.training.miniature.world.captions import PLACE_WORDS, STYLE_WORDS
from neti.training.miniature.world.objects import CONCEPTS, OBJECTS, Look, find_font
from neti.training.miniature.world.places import PLACES
from neti.training.miniature.world.styles import STYLES
from neti.training.miniature.world.world import Scene
from neti.training.studies.page import MAX_BYTES
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError
from neti.utils.hashing import folder_hash

ROOT = Path(__file__).parents[2]
EAST, NORTH, DIAGONAL = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.8, 0.6])


def test_class_features_are_unit_means() -> None:
    features = torch.stack([EAST, DIAGONAL, NORTH])
    classes = class_features(features, ["a", "a", "b"])
    assert list(classes) == ["a", "b"]
    assert torch.allclose(classes["a"], F.normalize(torch.tensor([1.8, 0.6]), dim=0))
    assert nearest(torch.stack([DIAGONAL, NORTH]), classes) == ["a", "b"]


def test_rights_count_only_where_there_is_a_truth() -> None:
    assert rights(["moon", "sea", "sea"], ["moon", "", "beach"]) == [1.0, 0.0]


def test_nearest_concept_is_by_the_mean_over_photos() -> None:
    """One photo of b is the single best match, but on average a is more similar."""
    image = EAST[None]
    photos = {"a": torch.stack([DIAGONAL, DIAGONAL]), "b": torch.stack([EAST, NORTH])}
    assert nearest_concept(image, photos) == ["a"]


SCENE = Scene(Look("insect", "bee", "🐝"), "moon", "oil", 1, 0.7, 0.0, 0.0, 0.0, False, None, 1)


def test_choices_differ_in_the_one_fact_that_is_asked_for() -> None:
    places = choices(SCENE, "place", ["cat", "insect"])
    assert places["snow"] == ["Oil painting of an insect in the snow", "An oil painting of an insect on a snowy day"]
    assert set(places) == set(PLACE_WORDS)
    categories = choices(SCENE, "category", ["cat", "insect"])
    assert [texts[0] for texts in categories.values()] == [
        "Oil painting of a cat in the moon",
        "Oil painting of an insect in the moon",
    ]
    styles = choices(SCENE, "style", ["cat", "insect"])
    assert styles["icon"][0] == "App icon of an insect"  # an icon brings its own ground
    assert set(styles) == set(STYLE_WORDS)


def by_words(texts: Sequence[str]) -> torch.Tensor:
    """A text encoder made by hand: one direction for each word it knows, and one that all texts share."""
    known = ("moon", "snow", "Oil", "oil", "Monet", "impressionist", "cat", "insect")
    return F.normalize(torch.tensor([[float(word in text) for word in known] + [1.0] for text in texts]), dim=-1)


def test_answers_follow_the_image_and_not_the_caption() -> None:
    images = by_words(["Oil cat in the moon", "Monet impressionist insect in the snow"])
    found = answers(by_words, images, [SCENE, SCENE], ["cat", "insect"])
    assert found == {"place": ["moon", "snow"], "style": ["oil", "monet"], "category": ["cat", "insect"]}


def test_retrieval_finds_what_is_alike_and_not_by_chance() -> None:
    captions = [f"caption {k}" for k in range(40)]
    features = torch.eye(40)
    assert retrieval_rates(features, features, captions) == [1.0] * 40
    moved = retrieval_rates(features, features.roll(1, 0), captions)
    assert np.mean(moved) == 0.0
    random = F.normalize(torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert np.mean(retrieval_rates(random[0], random[1], captions)) < 0.15  # 1/32 by chance


def test_retrieval_never_draws_a_caption_against_its_own_words() -> None:
    captions = ["same"] * 20 + [f"caption {k}" for k in range(12)]
    features = torch.eye(32)
    features[:20] = features[0]  # images and captions that nobody could tell apart
    assert retrieval_rates(features, features, captions, pool=8)[:20] == [1.0] * 20
    with pytest.raises(ValueError, match="13 different captions"):
        retrieval_rates(features, features, captions, pool=32)


def stored() -> dict[str, Any]:
    """Results as the JSON files hold them: 4 scenes, 2 concepts of which one was learned."""
    answers = {"place": ["moon", "sea", "sea", "city"], "style": ["oil"] * 4, "category": ["cat", "cat", "dog", "dog"]}
    return {
        "vae": {"psnr": [25.0, 28.0, 27.0, 26.0]},
        "retrieval": {"random": [1.0, 0.5, 1.0, 0.5], "full": [1.0] * 4},
        "text_to_image": {
            "captions": ["a", "b", "c", "d"],
            "truth": {
                "place": ["moon", "sea", "", "beach"],
                "style": ["oil"] * 4,
                "category": ["cat", "dog", "dog", "cat"],
            },
            "real": {"answers": answers, "similarity": [0.4] * 4},
            "generated": {"answers": answers, "similarity": [0.37, 0.38, 0.39, 0.36]},
        },
        "concepts": {
            "categories": {"tiger": "cat", "wolf": "dog"},
            "neti": {"tiger": ["tiger", "tiger", "tiger", "wolf"]},
            "word": {"tiger": ["wolf", "wolf"], "wolf": ["wolf", "tiger"]},
            "photos": {"tiger": ["tiger"], "wolf": ["wolf"]},
        },
        "speed": {"seconds": {"25": [0.9, 1.1, 1.0], "50": [2.0, 2.2, 1.9]}, "machine": {}, "load": 0.5},
    }


def test_rows_compare_stored_results_with_the_goals() -> None:
    rows = table_rows(stored(), 32)
    shown = {row.what: (row.value.split(" [")[0], row.met) for row in rows}
    assert shown == {
        "VAE reconstruction PSNR": ("26.50 dB", True),
        "metric model: own caption found among 32 random ones": ("75.0%", False),
        "text to image: place right": ("66.7%", False),
        "text to image: style right": ("100.0%", True),
        "text to image: category right": ("50.0%", False),
        "text similarity, generated over real": ("0.938", True),
        "NeTI: nearest concept is its own": ("75.0%", False),
        "the same, super-category word alone": ("25.0%", None),
        "seconds per image, 25 steps of DPM-Solver++": ("1.00 s", True),
        "seconds per image, 50 steps of DPM-Solver++": ("2.00 s", False),
    }
    assert "over 3 captions" in rows[2].note
    assert "1 of 2 concepts learned" in rows[6].note


def test_rows_say_so_when_no_concept_was_learned() -> None:
    results = stored()
    results["concepts"]["neti"] = {}
    row = next(row for row in table_rows(results, 32) if row.what.startswith("NeTI"))
    assert (row.value, row.met) == ("not measured", None)


def test_confusion_counts_images() -> None:
    assert confusion({"a": ["a", "b", "b"]}, ["a", "b", "c"]) == {"a": [1, 2, 0]}


def test_files_digest_sees_content_and_names_but_not_the_place(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"1")
    (tmp_path / "b" / "weights").write_bytes(b"1")
    (tmp_path / "c" / "weights").write_bytes(b"2")
    assert folder_hash(tmp_path / "a") == folder_hash(tmp_path / "b") != folder_hash(tmp_path / "c")
    (tmp_path / "b" / "weights").rename(tmp_path / "b" / "renamed")
    assert folder_hash(tmp_path / "a") != folder_hash(tmp_path / "b")


def test_the_reports_yaml_is_valid_and_mistakes_are_told() -> None:
    path = ROOT / "input_configs" / "miniature_report.yaml"
    config = parse_config(ReportConfig, ["--config_path", str(path)])
    assert set(config.paper_concepts) <= set(CONCEPTS)
    with pytest.raises(UserError, match="concept_prompt"):
        parse_config(ReportConfig, ["--concept_prompt", "a photo"])
    with pytest.raises(UserError, match="retrieval_pool"):
        parse_config(ReportConfig, ["--captions", "50", "--retrieval_pool", "40"])


def test_the_page_names_all_of_the_world() -> None:
    text = (ROOT / "docs" / "miniature.md").read_text().split("## Its parts")[0]
    for names in (OBJECTS, PLACES, STYLES):
        assert ", ".join(names) in " ".join(text.split())
    assert f"one of {sum(map(len, OBJECTS.values()))} emoji" in text and f"{len(CONCEPTS)} further glyphs" in text


@pytest.fixture
def tiny_report(tmp_path: Path, tiny_backbone: Backbone, tiny_backbone_folder: Path) -> Callable[..., ReportConfig]:
    """A report on random tiny models: two concepts, of which one has a file."""
    try:
        find_font()
    except UserError:
        pytest.skip("the font Noto Color Emoji is not installed")
    sizes = {"text_width": 32, "text_layers": 1, "image_width": 32, "image_layers": 1, "patch": 16}
    tokenizer: CLIPTokenizer = tiny_backbone.tokenizer
    model = build(CLIPSettings(**sizes), tokenizer, 64)
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    (tmp_path / "judge" / "preprocessor_config.json").write_text(json.dumps(preprocessing(model)))
    for name in ("tiger", "wolf"):
        (tmp_path / "concepts" / name).mkdir(parents=True)
        Image.new("RGB", (64, 64), "orange" if name == "tiger" else "grey").save(tmp_path / "concepts" / name / "0.png")
    (tmp_path / "concepts" / "concepts.yaml").write_text("tiger: cat\nwolf: dog\n")
    method_class = METHODS["neti"]
    method = created(
        method_class,
        method_class.config_class(),
        tiny_backbone.frame.num_places,
        tiny_backbone.text_encoder.embeddings.token_embedding.weight[5].detach(),
        torch.Generator().manual_seed(0),
    )
    (tmp_path / "learned").mkdir()
    Concept(method, "<tiger>", "cat", {"step": 7}).save(tmp_path / "learned" / "tiger.safetensors")

    def config(**changes: Any) -> ReportConfig:
        return ReportConfig(
            **{
                "sd": str(tiny_backbone_folder),
                "judge": str(tmp_path / "judge"),
                "categories": ("cat", "dog", "insect"),
                "captions": 40,
                "retrieval_pool": 8,
                "concepts_dir": tmp_path / "concepts",
                "concept_files": tmp_path / "learned",
                "train_missing": False,
                "concept_images": 2,
                "paper_concepts": ("tiger",),
                "steps": 1,
                "work_dir": tmp_path / "work",
                "docs_dir": tmp_path / "docs",
                **changes,
            }
        )

    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "miniature.md", tmp_path / "docs")
    return config


def test_the_whole_report_on_tiny_models(tiny_report: Callable[..., ReportConfig], tmp_path: Path) -> None:
    config = tiny_report()
    rows = write_report(config)
    assert len(rows) == 10
    page = (tmp_path / "docs" / "miniature.md").read_text()
    assert all(row.what in page for row in rows)
    assert "SIL Open Font" in page
    assert "NeTI steps 7" in page
    assert str(tmp_path) not in page
    pictures = sorted((tmp_path / "docs" / "images").iterdir())
    assert [path.name for path in pictures] == [
        f"miniature_{name}.jpg" for name in ("concepts", "failures", "prompts", "scenes", "vae")
    ]
    for path in pictures:
        assert f"images/{path.name}" in page
        assert path.stat().st_size <= MAX_BYTES

    results = json.loads(next((tmp_path / "work" / "results").glob("text_to_image-*.json")).read_text())["result"]
    assert len(results["captions"]) == 40
    assert set(results["truth"]["category"]) == {"cat", "dog", "insect"}

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.*")}
    assert write_report(config) == rows
    assert (tmp_path / "docs" / "miniature.md").read_text() == page
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.*")} == before


def test_model_parts_are_read_from_the_files(tiny_backbone: Backbone, tiny_backbone_folder: Path) -> None:
    parts = {name: parameters for name, parameters, _ in model_parts({"sd": tiny_backbone_folder})}
    assert parts["sd: unet"] == sum(parameter.numel() for parameter in tiny_backbone.unet.parameters())
    assert parts["sd: vae"] == sum(parameter.numel() for parameter in tiny_backbone.vae.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"docs_dir": Path("none")}, "none/miniature.md cannot be read"),
        ({"sd": "none"}, "model 'none'"),
        ({"judge": "none"}, "judge 'none'"),
        ({"font": Path("none.ttf")}, "there is no font none.ttf"),
        ({"concepts_dir": Path("none")}, "none/concepts.yaml"),
        ({"train_missing": True, "train_config": Path("none.yaml")}, "wolf has no file in concept_files"),
        ({"train_missing": True, "train_config": ROOT / "README.md"}, "README.md"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_measured(
    tiny_report: Callable[..., ReportConfig], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        write_report(tiny_report(**changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "work").exists()
