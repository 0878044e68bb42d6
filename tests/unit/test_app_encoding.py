"""A concept of one photo on the page: the mask that is painted or uploaded, the concept, and a training from there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from app_parts import make_services, write_photos
from PIL import Image, ImageDraw
from tiny_elite import tiny_encoder

from neti.models.backbone.backbone import Backbone
from neti.models.methods.elite.files import save_encoder
from neti.training.app.drawing.encoding import canvas, encoded, missing_encoder, receive, refined
from neti.training.app.services import Services
from neti.utils.errors import UserError


@pytest.fixture
def services(tmp_path: Path, tiny_backbone_folder: Path) -> Services:
    """An app whose encoder has a local mapper."""
    frame = Backbone.from_pretrained(str(tiny_backbone_folder), components=()).frame
    encoder = tmp_path / "encoder.safetensors"
    save_encoder(tiny_encoder(frame.layers, frame.text_width), encoder, base_model=str(tiny_backbone_folder))
    return make_services(tmp_path, tiny_backbone_folder, encoder=str(encoder), base_model=str(tiny_backbone_folder))


@pytest.fixture
def photo(tmp_path: Path) -> str:
    return str(write_photos(tmp_path / "uploads", count=1)[0])


def painted(side: int = 512) -> dict[str, object]:
    """What the editor gives: a layer on which the left half is painted."""
    layer = Image.new("RGBA", (side, side))
    ImageDraw.Draw(layer).rectangle((0, 0, side // 2 - 1, side), fill="#4f46e5")
    return {"background": None, "layers": [layer], "composite": None}


def test_what_is_painted_is_the_mask(services: Services, photo: str) -> None:
    assert canvas(photo).size == (512, 512)
    one = receive(photo, painted(), None, services.places)
    assert one.mask is not None and one.photo.parent == one.mask.parent
    mask = np.asarray(Image.open(one.mask))
    assert mask.shape == (64, 64) and (mask[:, :32] == 255).all() and not mask[:, 32:].any()
    assert receive(photo, {"layers": [Image.new("RGBA", (512, 512))]}, None, services.places).mask is None
    assert receive(photo, None, None, services.places).mask is None


def test_an_uploaded_mask_wins_over_a_painted_one(services: Services, photo: str, tmp_path: Path) -> None:
    white = tmp_path / "white.png"
    Image.new("L", (64, 64), 255).save(white)
    one = receive(photo, painted(), str(white), services.places)
    assert one.mask is not None and Image.open(one.mask).getextrema() == (255, 255)


def test_files_that_are_no_pictures_are_named(services: Services, photo: str, tmp_path: Path) -> None:
    notes = tmp_path / "notes.png"
    notes.write_text("no image")
    for case in ((str(notes), None), (photo, str(notes))):
        with pytest.raises(UserError, match=r"the image notes.png cannot be read \(it is no image\)$"):
            receive(case[0], None, case[1], services.places)
    with pytest.raises(UserError, match=r"notes.png"):
        canvas(str(notes))
    with pytest.raises(UserError, match="drop a photo first"):
        receive(None, None, None, services.places)


def test_the_concept_is_in_the_library_and_is_drawn(services: Services, photo: str) -> None:
    kept = {"app": services.config, "places": services.places}
    request = encoded(photo, painted(), None, "mug", "cup", "A photo of a {}", **kept)  # type: ignore[arg-type]
    entry = services.library["mug"]
    assert entry.caption == "mug · elite" and services.drawer.controls("mug").sliders == {"strength": 0.8}
    assert Image.open(services.library.thumbnail(entry)).size == (192, 192)
    made = list(services.drawer.pictures("one", request))[-1]
    assert len(made.pictures) == 4
    with pytest.raises(UserError, match="already"):
        encoded(photo, None, None, "mug", "cup", "A photo of a {}", **kept)  # type: ignore[arg-type]


def test_a_training_goes_on_from_the_photo_and_its_mask(services: Services, photo: str) -> None:
    kept = {"app": services.config, "places": services.places}
    config = refined(photo, painted(), None, "mug", "cup", **kept)  # type: ignore[arg-type]
    assert config.log.exp_name == "mug-neti" and config.data.masks == "folder"
    assert (config.model.start_from, config.model.encoder) == ("elite", services.config.encoder)
    assert sorted(path.name for path in config.data.train_data_dir.iterdir()) == ["photo-masklabel.png", "photo.png"]
    assert refined(photo, None, None, "mug", "cup", **kept).data.masks == "none"  # type: ignore[arg-type]


def test_a_missing_encoder_is_one_line(tmp_path: Path, tiny_backbone_folder: Path) -> None:
    [line] = missing_encoder(make_services(tmp_path, tiny_backbone_folder, encoder="nowhere").config)
    assert line.startswith("encoder 'nowhere': no such file") and "\n" not in line
