"""The miniature's world: deterministic scenes, captions that tell the truth, and nothing of what is held out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageFilter

from neti.models.conditioning.prompts import PAPER_PROMPTS
from neti.training.miniature.pretraining import data, loop, tokenizer, vae
from neti.training.miniature.pretraining.config import VAEConfig
from neti.training.miniature.report.zero_shot import truth
from neti.training.miniature.world import captions
from neti.training.miniature.world.concepts import (
    FIRST_REFERENCE,
    PHOTOS,
    REFERENCES,
    read_concepts,
    render_concept,
    write_concepts,
)
from neti.training.miniature.world.objects import (
    COLOURS,
    CONCEPTS,
    MORE_OBJECTS,
    OBJECTS,
    ONE_PLACE,
    PATTERNS,
    find_font,
)
from neti.training.miniature.world.places import PLACES
from neti.training.miniature.world.styles import OWN_GROUND, STYLES
from neti.training.miniature.world.world import Scene, World, concept_scenes, is_held_out
from neti.utils.errors import UserError

SHIPPED = Path(__file__).parents[2] / "input_configs" / "concepts"
WORLD = World("no font is needed to draw a scene's facts", {**OBJECTS, **MORE_OBJECTS})
SCENES = [WORLD.scene(1, index) for index in range(800)]


@pytest.fixture(scope="module")
def world() -> World:
    """The `cpu` world with its font; tests that render are skipped without the font."""
    try:
        return World.create("cpu", str(find_font()))
    except UserError:
        pytest.skip("the font Noto Color Emoji is not installed")


def said(scene: Scene, count: int = 4) -> list[str]:
    """Some captions of a scene."""
    return [captions.caption(scene, np.random.default_rng((3, k, scene.seed))) for k in range(count)]


def test_scenes_are_a_function_of_seed_and_index() -> None:
    assert [WORLD.scene(1, index) for index in range(50)] == SCENES[:50]
    assert [WORLD.scene(2, index) for index in range(50)] != SCENES[:50]
    assert len(set(SCENES)) == len(SCENES)


def test_training_scenes_show_every_category_place_and_style() -> None:
    assert {scene.look.category for scene in SCENES} == set(WORLD.categories)
    assert {scene.place for scene in SCENES} == set(PLACES)
    assert {scene.style for scene in SCENES} == set(STYLES)
    assert {scene.count for scene in SCENES} == {1, 2}


def test_held_out_combinations_are_never_trained_on() -> None:
    assert not any(is_held_out(scene) for scene in SCENES)
    held_out = [WORLD.scene(2, index, held_out=True) for index in range(100)]
    assert all(is_held_out(scene) for scene in held_out)

    def combination(scene: Scene) -> tuple[str, str, str]:
        return scene.look.category, scene.place, scene.style

    assert not {combination(scene) for scene in held_out} & {combination(scene) for scene in SCENES}


def test_a_third_of_the_held_out_split_are_held_out_combinations() -> None:
    split = data.scenes(WORLD, 90, held_out=True)
    assert [is_held_out(scene) for scene in split] == [index % 3 == 0 for index in range(90)]


def test_concepts_are_not_in_the_world_but_their_categories_are() -> None:
    known = {glyph for names in WORLD.categories.values() for glyph in names.values()}
    words = {word for names in WORLD.categories.values() for name in names for word in name.split()}
    for name, (category, glyph) in CONCEPTS.items():
        assert glyph not in known
        assert category in OBJECTS
        assert not set(name.split("_")) - {"car"} & words, f"captions name the held-out {name}"
    assert len({glyph for _, glyph in CONCEPTS.values()}) == len(CONCEPTS)


def test_captions_never_name_what_the_scene_lacks() -> None:
    """Specific names are taken out first: some hold a colour word, such as "brown bear"."""
    spoken = 0
    for scene in SCENES:
        for caption in said(scene):
            words = set(re.findall(r"[a-z]+", caption.replace(scene.look.name, "").lower()))
            if scene.style == "manga":
                words -= {"black", "white"}  # "a black and white manga"
            words -= {"green"} if "green jungle" in caption else set()
            assert words & set(COLOURS) <= {scene.look.colour}, caption
            assert words & set(PATTERNS) <= {scene.look.pattern}, caption
            assert ("two" in words) == (scene.count == 2), caption
            spoken += bool(words & set(COLOURS))
    assert spoken > 250  # the test has seen colours told


def test_captions_never_name_another_place_or_style() -> None:
    for scene in SCENES:
        for caption in said(scene, 2):
            for place, wordings in captions.PLACE_WORDS.items():
                if place != scene.place:
                    assert not any(caption.endswith(words) for words in wordings), caption
            for style, wordings in captions.STYLE_WORDS.items():
                frames = [re.escape(words).replace(r"\{\}", ".*") for words in wordings if words != "{}"]
                if style not in (scene.style, "photo"):
                    assert not any(re.match(frame, caption) for frame in frames if frame[-2:] != ".*"), caption


def test_full_captions_tell_style_place_count_and_category() -> None:
    for scene in SCENES:
        caption, message = captions.full_caption(scene), truth(scene)
        assert scene.look.category in caption
        assert ("two " in caption) == (scene.count == 2)
        assert message["place"] == "" or any(words in caption for words in captions.PLACE_WORDS[message["place"]])
        assert (message["place"] == "") == (scene.place == "plain")
        assert scene.style not in OWN_GROUND or message["place"] == ""
        assert captions.STYLE_WORDS[scene.style][0].split("{}")[0] in caption


def test_every_caption_and_paper_prompt_fits_the_text_tower(tmp_path: Path) -> None:
    texts = [caption for scene in SCENES for caption in said(scene, 1)]
    words = tokenizer.train(texts, 900, tmp_path)
    filled = [prompt.format(category) for prompt in PAPER_PROMPTS for category in WORLD.categories]
    lengths = [len(ids) for ids in words([*texts, *filled])["input_ids"]]
    assert max(lengths) <= tokenizer.MAX_LENGTH
    assert words.decode(words("a photo of a cat")["input_ids"], skip_special_tokens=True).strip() == "a photo of a cat"
    assert words("Äß!")["input_ids"].count(words.eos_token_id) == 1  # any text has tokens: nothing is unknown


def test_renders_are_deterministic_and_differ(world: World) -> None:
    scene = world.scene(1, 3)
    first, second = world.render(scene, 64), world.render(scene, 64)
    assert first.size == (64, 64)
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()
    assert world.render(replace(scene, place="moon", style="photo"), 64).tobytes() != first.tobytes()


@pytest.mark.parametrize("count", [1, 2])
def test_the_mask_is_where_the_objects_are(world: World, count: int) -> None:
    """What another place changes is the ground, what another colour changes lies on the object."""
    look = replace(world.scene(1, 3).look, colour="red", pattern=None)
    scene = replace(world.scene(1, 3), look=look, place="moon", style="photo", count=count, light=None)
    picture, mask = world.render_with_mask(scene, 64)
    assert picture.tobytes() == world.render(scene, 64).tobytes()
    assert (mask.mode, mask.size) == ("L", (64, 64))
    inside = np.asarray(mask.filter(ImageFilter.MinFilter(5))) == 255  # away from the edge, where both are seen
    outside = np.asarray(mask.filter(ImageFilter.MaxFilter(9))) == 0
    assert inside.sum() > 100 and outside.sum() > 500

    def changed(other: Scene) -> np.ndarray:
        difference = np.asarray(world.render(other, 64), int) - np.asarray(picture, int)
        return np.abs(difference).max(-1) > 12

    recoloured = changed(replace(scene, look=replace(look, colour="blue")))
    assert not recoloured[outside].any() and recoloured[inside].mean() > 0.3
    if count == 1:  # the angles of two depend on what the place has drawn of the scene's randomness
        elsewhere = changed(replace(scene, place="jungle"))
        assert not elsewhere[inside].any() and elsewhere[outside].mean() > 0.9


def test_every_glyph_is_in_the_font(world: World) -> None:
    for names in WORLD.categories.values():
        for name, glyph in names.items():
            look = replace(SCENES[0].look, glyph=glyph, name=name, colour=None, pattern=None)
            shown = world.render(replace(SCENES[0], look=look, place="plain", style="photo", light=None), 64)
            assert np.asarray(shown).std() > 5, f"{name} shows nothing"


def test_shipped_concepts_come_from_the_generator(world: World, tmp_path: Path) -> None:
    """Names, texts and sizes; pixels are not compared, since another version of the font may draw another thing."""
    write_concepts(world, tmp_path / "concepts", 64)

    def files(folder: Path) -> set[Path]:
        return {path.relative_to(folder) for path in folder.glob("concepts*/**/*") if path.is_file()}

    assert files(tmp_path) == files(SHIPPED.parent)
    for text in ("concepts/concepts.yaml", "concepts_one_place/concepts.yaml", "concepts/README.md"):
        assert (tmp_path / text).read_text() == (SHIPPED.parent / text).read_text()
    for one in (SHIPPED, SHIPPED.with_name("concepts_one_place")):
        assert all(len(concept.photos()) == PHOTOS for concept in read_concepts(one))


def test_masks_serve_both_sets_and_references_are_other_photos(world: World) -> None:
    assert ONE_PLACE.keys() == CONCEPTS.keys()
    assert set(ONE_PLACE.values()) == set(PLACES) - {"plain"}
    references = set(concept_scenes("tiger", REFERENCES, start=FIRST_REFERENCE, place="plain"))
    assert not references & {scene for place in (None, "plain") for scene in concept_scenes("tiger", 100, place=place)}
    for name, place in ONE_PLACE.items():
        pairs = list(zip(concept_scenes(name), concept_scenes(name, place=place), strict=True))
        assert {inside.place for _, inside in pairs} == {place}
        assert not any(is_held_out(inside) for _, inside in pairs), f"the model has not seen a {name} there"
        for scene, inside in pairs[:2]:
            picture, mask = world.render_with_mask(scene, 32)
            other, same = world.render_with_mask(inside, 32)
            assert mask.tobytes() == same.tobytes()
            assert (picture.tobytes() == other.tobytes()) == (scene.place == place)


def test_fresh_concept_photos_continue_the_series(world: World) -> None:
    series = concept_scenes("tiger", 7)
    assert series[:5] == concept_scenes("tiger", 5)
    assert len(set(series)) == 7
    fresh = render_concept(world, "tiger", 32, 2, start=5)
    assert [image.tobytes() for image in fresh] == [world.render(scene, 32).tobytes() for scene in series[5:]]


def test_a_training_cut_into_slices_ends_bit_for_bit_like_one_that_was_not(tmp_path: Path) -> None:
    config = VAEConfig(channels=(8, 8), steps=5, batch=2)
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    whole = vae.train(config, images, loop.Slice(tmp_path / "whole", "vae"))
    assert whole is not None

    for _ in range(config.steps - 1):  # one step per call: the time is always up
        assert vae.train(config, images, loop.Slice(tmp_path / "sliced", "vae", minutes=1e-9)) is None
    sliced = vae.train(config, images, loop.Slice(tmp_path / "sliced", "vae", minutes=1e-9))
    assert sliced is not None
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, sliced.state_dict()[name]), name

    again = vae.train(config, images, loop.Slice(tmp_path / "sliced", "vae"))  # finished: nothing is trained further
    assert again is not None
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in whole.state_dict().items())


@pytest.mark.parametrize("text", ["- tiger\n", "tiger\n", "tiger: [cat]\n", ""])
def test_an_index_of_another_shape_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "concepts.yaml").write_text(text)
    with pytest.raises(UserError, match="must hold a line `folder: super category`"):
        read_concepts(tmp_path)
