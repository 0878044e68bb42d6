"""Learning for the page: photos that are checked, what is asked for as a configuration, the queue and its states."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from app_parts import make_services, new_neti, put_concept, write_photos
from filelock import FileLock
from PIL import Image

from neti.models.backbone.backbone import Backbone
from neti.training.app.learning.photos import receive
from neti.training.app.learning.process import HOLDER, LOCK, Record, main
from neti.training.app.learning.request import DEFAULT, Lesson, presets, run_config
from neti.training.app.learning.runs import State
from neti.training.app.markup.runs import run_view
from neti.training.app.services import Services
from neti.utils.errors import UserError


@pytest.fixture
def services(tmp_path: Path, tiny_backbone_folder: Path) -> Services:
    return make_services(tmp_path, tiny_backbone_folder)


@pytest.fixture
def photos(services: Services) -> Path:
    """A folder of three photos among the app's own."""
    folder = services.places.photos / "three"
    write_photos(folder)
    return folder


def test_a_bad_photo_is_named_beside_the_good_ones(services: Services, tmp_path: Path) -> None:
    uploads = write_photos(tmp_path / "uploads")
    (tmp_path / "uploads" / "notes.jpg").write_text("no image")
    (tmp_path / "uploads" / "empty.png").touch()
    uploads += [tmp_path / "uploads" / "notes.jpg", tmp_path / "uploads" / "empty.png"]
    found = receive(uploads, services.places.fresh(services.places.photos))
    assert found.good == 3 and sorted(path.name for path in found.folder.iterdir()) == ["0.png", "1.png", "2.png"]
    assert found.problems == ["notes.jpg cannot be read (it is no image)", "empty.png cannot be read (it is empty)"]
    assert [caption for _, caption in found.shown] == ["0.png", "1.png", "2.png", "✕ notes.jpg", "✕ empty.png"]
    with pytest.raises(UserError, match="none of these is a photo"):
        receive(uploads[-2:], services.places.fresh(services.places.photos))


def test_masks_lie_over_what_is_not_learned(services: Services, tmp_path: Path) -> None:
    [photo] = write_photos(tmp_path / "uploads", count=1)
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save(photo.with_name("0-masklabel.png"))
    uploads = [photo, photo.with_name("0-masklabel.png")]
    plain = receive(uploads, services.places.fresh(services.places.photos))
    assert plain.good == 1 and plain.problems == ["skipped 0-masklabel.png: a mask, which data.masks = folder uses"]
    masked = receive(uploads, services.places.fresh(services.places.photos), "folder")
    assert masked.problems == []
    before, after = (found.shown[0][0] for found in (plain, masked))
    assert before.crop((0, 0, 90, 192)).tobytes() == after.crop((0, 0, 90, 192)).tobytes()
    assert before.crop((102, 0, 192, 192)).tobytes() != after.crop((102, 0, 192, 192)).tobytes()
    missing = receive(uploads[:1], services.places.fresh(services.places.photos), "folder")
    assert missing.problems[0].startswith("0.png has no mask 0-masklabel.png")


def test_a_lesson_becomes_the_recipe_with_what_was_chosen(services: Services, photos: Path) -> None:
    config = run_config(Lesson("mug", photos, " coffee  mug ", steps=100), services.config, services.places)
    assert config.log.run_dir == services.places.outputs / "mug"
    assert (config.data.placeholder_token, config.data.super_category_token) == ("<mug>", "coffee mug")
    assert config.data.super_category_rule == "mean"
    assert (config.optim.max_train_steps, config.log.save_steps, config.eval.validation_steps) == (100, 25, 25)
    kept = run_config(Lesson("mug", photos, "mug", preset="paper"), services.config, services.places)
    assert kept.optim.max_train_steps == 8 and kept.model.norm_rule == "base"
    assert presets(services.config) == [DEFAULT, "compact", "frozen_ground", "paper", "reference"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../mug"}, "is no name for a concept"),
        ({"name": "app"}, "is no name for a concept"),
        ({"name": "3d"}, "is no name for a concept"),
        ({"name": "taken"}, "a concept called taken already"),
        ({"method": "dreambooth"}, "there are neti, textual_inversion, xti"),
        ({"method": "xti", "preset": "paper"}, "model.method = xti has no model.norm_rule"),
        ({"preset": "../train"}, "preset '../train': there are"),
        ({"photos": Path("/etc")}, "is not inside the outputs folder"),
        ({"steps": 0}, "must be at least 1"),
        ({"masks": "drawn"}, "must be one of: none, folder, alpha"),
    ],
)
def test_a_lesson_that_makes_no_sense_is_one_line(
    services: Services, photos: Path, change: dict[str, object], message: str
) -> None:
    (services.places.outputs / "taken").mkdir()
    lesson = {"name": "mug", "photos": photos, "word": "mug", **change}
    with pytest.raises(UserError, match=message) as caught:
        run_config(Lesson(**lesson), services.config, services.places)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_empty_fields_are_asked_for() -> None:
    for photos, word, message in ((None, "mug", "drop three to six photos"), ("there", " ", "what kind of thing")):
        with pytest.raises(UserError, match=message):
            Lesson.of(photos, "mug", word)


def test_trainings_wait_in_order_and_survive_the_server(services: Services, photos: Path) -> None:
    runs = services.runs
    for name in ("one", "two", "three"):
        runs.add(run_config(Lesson(name, photos, "toy"), services.config, services.places))
    with pytest.raises(UserError, match="already"):
        services.places.new_name("two")
    runs.stop("two")
    again = type(runs)(services.places)  # another server, which reads what the first one left
    assert again.names() == ["one", "three", "two"]
    assert [str(again.status(name).state) for name in again.names()] == ["queued", "queued", "stopped"]
    again.resume("two")
    assert again.names() == ["one", "three", "two"] and again.status("two").state is State.queued
    with pytest.raises(UserError, match="two is queued"):
        again.resume("two")
    with pytest.raises(UserError, match="no run called 'four'"):
        again.status("four")


def test_the_run_that_trains_is_known_by_its_lock(services: Services, photos: Path) -> None:
    runs, places = services.runs, services.places
    runs.add(run_config(Lesson("mug", photos, "toy"), services.config, places))
    [queued] = places.queue.iterdir()
    queued.rename(places.runs / "mug.yaml")
    (places.runs / HOLDER).write_text(json.dumps({"pid": 0, "run": "mug"}))
    record = Record(places.runs / "mug.json")
    record.write(last_step=8)
    with FileLock(places.runs / LOCK):
        record.started(2, 8)
        record.stepped(4, 0.1)
        status = runs.status("mug")
        assert (status.state, status.can_stop, status.last_step) == (State.training, True, 8)
    assert runs.status("mug").state is State.stopped and runs.status("mug").can_resume
    record.stepped(8, 0.1)
    assert runs.status("mug").state is State.done
    record.write(error="<b>no</b> disk", step=5)
    status = runs.status("mug")
    assert status.state is State.failed and "&lt;b&gt;no" in run_view(status) and "<b>" not in run_view(status)


def test_the_process_of_a_training_says_why_it_failed(services: Services, photos: Path) -> None:
    places = services.places
    services.runs.add(run_config(Lesson("mug", photos, "toy"), services.config, places))
    shutil.rmtree(photos)
    [queued] = places.queue.iterdir()
    assert main(places.outputs, queued) == 2
    status = services.runs.status("mug")
    assert status.state is State.failed and "the image folder" in status.error and "does not exist" in status.error
    assert main(places.outputs, queued) == 0, "it is not in the queue any more"


def test_runs_of_the_terminal_are_found_too(services: Services, tiny_backbone_folder: Path) -> None:
    backbone = Backbone.from_pretrained(str(tiny_backbone_folder), components=("text_encoder",))
    path = put_concept(services.places.outputs, "old", new_neti(backbone), tiny_backbone_folder)
    (path.parent / "metrics.jsonl").write_text("".join(f'{{"step": {k}, "loss": {1 / k}}}\n' for k in (1, 2, 3)))
    status = services.runs.status("old")
    assert services.runs.names() == ["old"] and status.losses == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert (status.state, status.step, status.last_step) == (State.done, 3, 3)
    assert "polyline" in run_view(status)
