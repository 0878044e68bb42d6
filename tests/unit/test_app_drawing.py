"""Drawing for the page: the library, what a concept offers, requests of several people, and restoring an image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from app_parts import new_neti, with_two_concepts
from perfusion_concepts import make_perfusion
from PIL import Image

from neti.models.backbone.backbone import Backbone
from neti.models.concepts.concept import Concept
from neti.models.methods.elite.method import ELITE, ELITEConfig
from neti.training.app.drawing.controls import NO_CONTROLS, NOTHING, controls_of
from neti.training.app.drawing.drawer import Progress
from neti.training.app.drawing.request import Request, restored
from neti.training.app.services import Services
from neti.utils.errors import UserError


@pytest.fixture
def services(tmp_path: Path, tiny_backbone_folder: Path) -> Services:
    """Two concepts, toy and cat, in the library."""
    return with_two_concepts(tmp_path, tiny_backbone_folder)


def last(services: Services, request: Request, session: str = "one") -> Progress:
    return list(services.drawer.pictures(session, request))[-1]


def pixels(made: Progress) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path, _ in made.pictures]


def test_the_library_holds_what_can_be_read_and_shows_a_picture_of_it(services: Services) -> None:
    broken = services.places.outputs / "broken" / "concept-steps-1.safetensors"
    broken.parent.mkdir()
    broken.write_bytes(b"nothing")
    elsewhere = services.places.outputs.parent / "elsewhere.safetensors"
    elsewhere.write_bytes((services.places.outputs / "toy" / "concept-steps-3.safetensors").read_bytes())
    (services.places.concepts / "linked.safetensors").symlink_to(elsewhere)
    entries = services.library.entries()
    assert {entry.name for entry in entries} == {"toy", "cat"}, "neither broken files nor links that lead out"
    assert {entry.caption for entry in entries} == {"toy · neti", "cat · neti"}
    for entry in entries:
        assert Image.open(services.library.thumbnail(entry)).size == (192, 192)
    with pytest.raises(UserError, match="no concept called 'dog'; the library holds: "):
        services.library["dog"]


def test_only_whole_concept_files_are_taken(services: Services, tmp_path: Path) -> None:
    pickled = tmp_path / "mapper-steps-3.pt"
    pickled.write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"^mapper-steps-3.pt is no concept file; .* ends in .safetensors$"):
        services.library.add(pickled)
    whole = (services.places.outputs / "toy" / "concept-steps-3.safetensors").read_bytes()
    cut = tmp_path / "cut one.safetensors"
    cut.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"^cut one.safetensors: not a complete"):
        services.library.add(cut)
    (tmp_path / "my toy.safetensors").write_bytes(whole)
    assert services.library.add(tmp_path / "my toy.safetensors").name == "my_toy"
    with pytest.raises(UserError, match="already"):
        services.library.add(tmp_path / "my toy.safetensors")


def test_controls_are_read_from_the_method(tiny_backbone: Backbone) -> None:
    neti = controls_of(Concept(new_neti(tiny_backbone), "<toy>", "toy"))
    assert (neti.units, neti.sliders, neti.comparable) == (128, {}, ["truncation", "key_lock"])
    assert neti.steps("truncation") == [None, 64, 16, 4]
    perfusion = controls_of(Concept(make_perfusion(tiny_backbone), "<toy>", "toy"))
    assert perfusion.sliders == {"beta": 0.7, "tau": 0.15} and perfusion.lock == "local" and not perfusion.units
    elite = controls_of(Concept(ELITE(ELITEConfig(patches=4), tiny_backbone.frame), "<toy>", "toy"))
    assert elite.sliders == {"strength": 0.8}
    words_alone = controls_of(Concept(ELITE(ELITEConfig(), tiny_backbone.frame), "<toy>", "toy"))
    assert not words_alone.comparable


def test_only_what_was_moved_goes_into_the_recipe(tiny_backbone: Backbone) -> None:
    has = controls_of(Concept(make_perfusion(tiny_backbone), "<toy>", "toy"))
    shown = has.widgets()
    truncation, lock, key_lock, compare, *sliders = (widget["value"] for widget in shown)
    assert compare == NOTHING
    assert [widget["visible"] for widget in shown] == [False, True, False, True, True, True, False]
    assert has.chosen(truncation, lock, key_lock, *sliders) == (None, {})
    sliders[0] = 0.5
    assert has.chosen(truncation, "global", True, *sliders) == (None, {"beta": 0.5, "lock": "global"})
    assert NO_CONTROLS.chosen(3, "local", True, *sliders) == (None, {})
    neti = controls_of(Concept(new_neti(tiny_backbone), "<toy>", "toy"))
    assert neti.chosen(128, "", False, *sliders) == (None, {})
    assert neti.chosen(16, "", True, *sliders) == (16, {"key_lock": True})


def test_the_same_seeds_stand_side_by_side(services: Services) -> None:
    made = last(services, Request("A photo of a {}", "toy", seeds="0-1", compare="truncation", steps=2))
    assert [caption for _, caption in made.pictures][::2] == [
        "all units · seed 0",
        "64 units · seed 0",
        "16 units · seed 0",
        "4 units · seed 0",
    ]
    assert made.columns == 2 and made.words == "8 images drawn"


def test_eight_people_at_once_get_the_images_of_one_after_another(services: Services) -> None:
    requests = [
        Request("A photo of a {}", ("toy", "cat")[k % 2], seeds=f"{k}-{k + 1}", truncation=(None, 16)[k // 4], steps=3)
        for k in range(8)
    ]
    alone = [pixels(last(services, request, f"a{k}")) for k, request in enumerate(requests)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda k: pixels(last(services, requests[k], f"b{k}")), range(8)))
    for one, other in zip(alone, together, strict=True):
        assert len(one) == 2 and all(map(np.array_equal, one, other))
    assert not np.array_equal(alone[0][0], alone[1][0])


def test_cancelling_ends_it_between_two_steps_and_the_app_lives_on(services: Services) -> None:
    steps = services.drawer.pictures("one", Request("A photo of a {}", "toy", seeds="0-7", steps=200))
    seen = [next(steps)]
    while seen[-1].done == 0:
        seen.append(next(steps))
    services.drawer.cancel("one")
    seen += list(steps)
    assert seen[-1].done < seen[-1].total and not seen[-1].pictures
    assert seen[-1].words == "cancelled", "whatever the page still gets late, this comes after it"
    assert len(last(services, Request("A photo of a {}", "toy", seeds="3", steps=2)).pictures) == 1


def test_a_new_request_of_a_session_ends_its_old_one(services: Services) -> None:
    old = services.drawer.pictures("one", Request("A photo of a {}", "toy", seeds="0-7", steps=200))
    next(old)
    other = services.drawer.pictures("two", Request("A photo of a {}", "cat", seeds="5", steps=2))
    next(other)
    assert len(last(services, Request("A photo of a {}", "toy", seeds="3", steps=2)).pictures) == 1
    assert not any(made.pictures for made in old)
    newer = services.drawer.pictures("one", Request("A photo of a {}", "toy", seeds="0-7", steps=200))
    older = services.drawer.pictures("one", Request("A photo of a {}", "toy", seeds="0-7", steps=200))
    next(newer)
    next(older)
    assert all(not made.cancelled for made in newer), "its end, by the other, is not the session's"
    services.drawer.cancel("one")
    assert list(older)[-1].cancelled, "and has not taken the other's ticket along"
    assert list(other)[-1].pictures, "another session is left alone"


def test_what_was_cancelled_while_it_waited_leaves_a_queue_that_draws(services: Services) -> None:
    """The queue finds nothing to do then, and must wait for more."""
    first = services.drawer.pictures("one", Request("A photo of a {}", "toy", seeds="0", steps=50))
    second = services.drawer.pictures("two", Request("A photo of a {}", "cat", seeds="0", steps=2))
    next(first)
    next(second)
    services.drawer.cancel("two")
    services.drawer.cancel("one")
    assert [made.words for made in second] == ["cancelled"] and not any(made.pictures for made in first)
    assert len(last(services, Request("A photo of a {}", "toy", seeds="3", steps=2)).pictures) == 1


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("A photo of a {}"), "choose a concept for the {}"),
        (Request("A photo of a {dog}", "toy"), "no concept called 'dog'"),
        (Request("A photo of a toy", "toy"), "write {} in the prompt"),
        (Request("A photo of a {}", "toy", seeds="0-99"), "these are 100 images; ask for at most 32"),
        (Request("A photo of a {}", "toy", seeds="many"), "neither a seed nor a range"),
        (Request("A photo of a {}", "toy", scheduler="none"), "must be one of"),
        (Request("A photo of a {}", "toy", settings={"beta": 0.5}), "setting beta: no concept"),
    ],
)
def test_a_request_that_makes_no_sense_is_one_line(services: Services, request_: Request, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("{", r"\{")) as caught:
        last(services, request_)
    assert "\n" not in str(caught.value) and not list(services.places.pictures.iterdir())


def test_an_image_restores_what_it_was_asked_for(services: Services, tmp_path: Path) -> None:
    asked = Request("A photo of a {}", "toy", "fog", "7", 16, {"key_lock": True}, steps=2, guidance_scale=3.0)
    [(path, _)] = last(services, asked).pictures
    renamed = tmp_path / "mailed.png"
    renamed.write_bytes(Path(path).read_bytes())
    found, *fields = restored(renamed, services.library)
    assert found == asked and fields == ["toy", "A photo of a {}", "7", "fog", 2, 3.0, "dpmsolver++"]
    assert np.array_equal(pixels(last(services, found))[0], np.asarray(Image.open(renamed)))
    Image.new("RGB", (8, 8)).save(tmp_path / "screenshot.png")
    with pytest.raises(UserError, match=r"^screenshot.png carries no recipe"):
        restored(tmp_path / "screenshot.png", services.library)
    (services.places.outputs / "toy" / "concept-steps-3.safetensors").unlink()
    with pytest.raises(UserError, match="is not in the library"):
        restored(renamed, services.library)
