"""A concept of one picture: encoding it, keeping it, drawing with it, and every wrong picture or mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_elite import tiny_encoder

from neti.models.concepts.concept import Concept
from neti.models.generation.draw import draw
from neti.models.generation.recipes import ImageRecipe
from neti.models.methods.elite.config import EncodeConfig
from neti.models.methods.elite.encode import encode_picture, read_picture
from neti.models.methods.elite.files import save_encoder
from neti.models.methods.elite.method import ELITE, ELITESettings
from neti.models.methods.elite.official import convert_official
from neti.utils.errors import UserError


@pytest.fixture
def encoder_file(tiny_backbone, tiny_backbone_folder, tmp_path) -> Path:
    """A tiny encoder for the tiny model."""
    frame = tiny_backbone.frame
    path = tmp_path / "encoder.safetensors"
    save_encoder(tiny_encoder(frame.layers, frame.text_width), path, base_model=str(tiny_backbone_folder))
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    """A picture of 40 x 30 pixels; beside it `mask.png`, white in the middle."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    mask = Image.new("L", (40, 30))
    mask.paste(255, (10, 5, 30, 25))
    mask.save(tmp_path / "mask.png")
    return tmp_path / "photo.png"


def encoded(encoder_file: Path, photo: Path, **more: object) -> Concept:
    return encode_picture(
        EncodeConfig(image=photo, encoder=str(encoder_file), **{"mask": photo.with_name("mask.png"), **more})
    )


def drawn(backbone, concept: Concept, **recipe: object) -> np.ndarray:
    common = {"prompt": "A photo of a {}", "steps": 2, "guidance_scale": 3.0}
    (made,) = draw(backbone, [ImageRecipe(**{**common, **recipe})], {"{}": concept.method})
    return np.asarray(made.image, np.int16)


def test_a_concept_file_draws_what_the_encoded_concept_draws(tiny_backbone, encoder_file, photo, tmp_path):
    concept = encoded(encoder_file, photo)
    concept.save(tmp_path / "concept.safetensors")
    loaded = Concept.load(tmp_path / "concept.safetensors", backbone=tiny_backbone)
    assert str(tmp_path) not in (tmp_path / "concept.safetensors").read_bytes().decode("latin-1")
    loaded.method.settings = ELITESettings(encoder=str(encoder_file))  # where it lies, the file does not tell
    assert np.array_equal(drawn(tiny_backbone, loaded), drawn(tiny_backbone, concept))
    assert (tmp_path / "concept.safetensors").stat().st_size < 20_000  # words and patches, no matrices
    assert loaded.placeholder == "<photo>" and loaded.method.positions == 1


def test_a_batch_of_pictures_is_what_each_is_alone(tiny_backbone, encoder_file, photo):
    concept = encoded(encoder_file, photo, strength=1.5)
    recipes = [ImageRecipe(prompt=p, steps=2, seed=s) for p, s in (("a {}", 0), ("the {} on a beach", 1))]
    together = [np.asarray(made.image, np.int16) for made in draw(tiny_backbone, recipes, {"{}": concept.method})]
    alone = [drawn(tiny_backbone, concept, prompt=r.prompt, seed=r.seed, guidance_scale=7.5) for r in recipes]
    assert max(np.abs(a - b).max() for a, b in zip(together, alone, strict=True)) <= 1


def test_strength_and_words_are_the_pictures(tiny_backbone, encoder_file, photo):
    words_alone = encoded(encoder_file, photo, patches=False, mask=None)
    assert words_alone.method.config.patches == 0
    weak, strong = (encoded(encoder_file, photo, strength=strength) for strength in (0.0, 2.0))
    assert np.array_equal(drawn(tiny_backbone, weak), drawn(tiny_backbone, words_alone))
    assert not np.array_equal(drawn(tiny_backbone, strong), drawn(tiny_backbone, words_alone))
    strong.method.settings = ELITESettings(strength=0.0)
    assert np.array_equal(drawn(tiny_backbone, strong), drawn(tiny_backbone, words_alone))
    all_words = encoded(encoder_file, photo, word=None)
    assert all_words.method.positions == 5 and torch.equal(all_words.method.words[:1], strong.method.words)
    assert torch.equal(encoded(encoder_file, photo, word=3).method.words, all_words.method.words[3:4])


def test_a_concept_refuses_another_encoder(tiny_backbone, tiny_backbone_folder, encoder_file, photo, tmp_path):
    encoded(encoder_file, photo).save(tmp_path / "concept.safetensors")
    frame = tiny_backbone.frame
    save_encoder(tiny_encoder(frame.layers, frame.text_width, seed=7), tmp_path / "other", base_model="tiny")
    encoder_file.rename(tmp_path / "moved")
    method = Concept.load(tmp_path / "concept.safetensors").method
    assert isinstance(method, ELITE)
    with pytest.raises(UserError, match="neither here nor beside the concept"):
        method.projection()
    method.settings = ELITESettings(encoder=str(tmp_path / "other"))
    with pytest.raises(UserError, match="another encoder than the one"):
        method.projection()
    method.settings = ELITESettings(encoder=str(tmp_path / "moved"))
    assert method.projection().image_tokens == 16


def test_half_precision_is_the_same_encoder(tiny_backbone, tiny_backbone_folder, photo, tmp_path):
    frame, parts = tiny_backbone.frame, {}
    encoder = tiny_encoder(frame.layers, frame.text_width)
    encoder.vision.tower.save_pretrained(tmp_path / "tower")
    for role, mapper in (("global", encoder.of_words), ("local", encoder.of_patches)):
        parts[role] = tmp_path / f"{role}_mapper.pt"
        torch.save(mapper.state_dict(), parts[role])
    options = {"base_model": str(tiny_backbone_folder), "vision": str(tmp_path / "tower")}
    configs, sizes = [], []
    for half in (True, False):
        made = tmp_path / f"half-{half}.safetensors"
        convert_official(parts, made, half=half, **options)
        configs.append(encoded(made, photo).method.config)
        sizes.append(made.stat().st_size)
    assert configs[0].digest == configs[1].digest and configs[0].patches_digest == configs[1].patches_digest
    assert sizes[0] < 0.7 * sizes[1]
    parts["local"] = tmp_path / "second.pt"
    torch.save(encoder.of_words.state_dict(), parts["local"])
    with pytest.raises(UserError, match="one of them is given twice"):
        convert_official(parts, tmp_path / "twice.safetensors", half=True, **options)
    assert not (tmp_path / "twice.safetensors").exists()


def test_two_concepts_of_one_encoder_share_its_matrices(tiny_backbone, tiny_backbone_folder, encoder_file, photo):
    with_patches, without = encoded(encoder_file, photo), encoded(encoder_file, photo, mask=None)
    recipe = ImageRecipe(prompt="a {a} and a {b}", steps=1)
    (made,) = draw(tiny_backbone, [recipe], {"a": without.method, "b": with_patches.method})
    assert made.image.size == (64, 64)
    with pytest.raises(UserError, match="two ELITE concepts with patches"):
        list(draw(tiny_backbone, [recipe], {"a": with_patches.method, "b": encoded(encoder_file, photo).method}))
    frame = tiny_backbone.frame
    save_encoder(
        tiny_encoder(frame.layers, frame.text_width, seed=7), encoder_file, base_model=str(tiny_backbone_folder)
    )
    with pytest.raises(UserError, match="two ELITE encoders"):
        list(draw(tiny_backbone, [recipe], {"a": without.method, "b": encoded(encoder_file, photo).method}))


def image_of(tmp_path: Path, mode: str, size: tuple[int, int], colour: object, box: object = None) -> Path:
    image = Image.new(mode, size)
    image.paste(colour, box or (5, 5, 20, 20))
    path = tmp_path / f"made-{mode}.png"
    image.save(path)
    return path


@pytest.mark.parametrize(
    ("mode", "size", "colour", "box", "message"),
    [
        ("L", (41, 30), 255, None, "has 41 x 30 pixels, the image 40 x 30"),
        ("L", (40, 30), 100, None, "is empty"),
        ("L", (40, 30), 255, (0, 0, 40, 30), "covers everything"),
        ("RGB", (40, 30), (255, 0, 0), None, "several channels that differ"),
    ],
)
def test_a_mask_that_is_none_is_one_line(photo, tmp_path, mode, size, colour, box, message):
    with pytest.raises(UserError, match=message) as caught:
        read_picture(photo, image_of(tmp_path, mode, size, colour, box))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_masks_of_every_kind_of_grey_are_read(photo, tmp_path, mode):
    grey = Image.open(photo.with_name("mask.png")).convert(mode)
    grey.save(tmp_path / "grey.png")
    _, mask = read_picture(photo, tmp_path / "grey.png")
    assert mask.shape == (1, 30, 40) and mask.sum() == 400 and mask[0, 5, 10] == 1


def test_transparency_is_the_mask_unless_a_file_is(photo, tmp_path):
    image = Image.open(photo).convert("RGBA")
    image.putalpha(Image.open(photo.with_name("mask.png")))
    image.save(tmp_path / "cut.png")
    picture, mask = read_picture(tmp_path / "cut.png")
    assert mask.sum() == 400 and picture.shape == (3, 30, 40)
    assert read_picture(photo)[1] is None
    image.putalpha(255)
    image.save(tmp_path / "opaque.png")
    assert read_picture(tmp_path / "opaque.png")[1] is None


def test_patches_without_a_mask_or_a_mapper_are_one_line(tiny_backbone, tiny_backbone_folder, encoder_file, photo):
    with pytest.raises(UserError, match="patches = true needs to know where the object is"):
        encoded(encoder_file, photo, mask=None, patches=True)
    frame = tiny_backbone.frame
    of_words = tiny_encoder(frame.layers, frame.text_width, local=False)
    save_encoder(of_words, encoder_file, base_model=str(tiny_backbone_folder))
    with pytest.raises(UserError, match="has no local mapper"):
        encoded(encoder_file, photo)
    assert encoded(encoder_file, photo, mask=None).method.config.patches == 0


def test_elite_is_not_trained(tiny_backbone):
    with pytest.raises(UserError, match=r"scripts/encode.py"):
        ELITE.create(ELITE.config_class(), tiny_backbone.frame, None)
