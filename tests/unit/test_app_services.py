"""The app's settings and folders, and what the page says when something fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neti.training.app.config import AppConfig
from neti.training.app.places import Places
from neti.training.app.services import Services, guarded, message_of
from neti.utils.config.parsing import parse_config
from neti.utils.errors import UserError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host=0.0.0.0"], "host = 0.0.0.0 lets others in"),
        (["--share"], "share = true lets others in"),
        (["--auth=me"], "auth must be written name:password"),
        (["--recipes={dreambooth: a.yaml}"], "'dreambooth' is no method"),
        (["--device=gpu"], "is no device"),
        (["--port=0"], "at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(AppConfig, options)


def test_others_come_in_with_a_password_alone() -> None:
    config = parse_config(AppConfig, ["--host=0.0.0.0", "--auth=me:two:parts", "--share"])
    assert config.login == ("me", "two:parts")
    assert parse_config(AppConfig, []).login is None
    assert parse_config(AppConfig, []).methods == ["neti", "perfusion", "textual_inversion", "xti"]
    assert parse_config(AppConfig, ["--recipes={perfusion: a.yaml}"]).methods == ["perfusion"]


def test_a_missing_recipe_is_named_before_a_folder_is_made(tmp_path: Path) -> None:
    config = AppConfig(outputs=tmp_path / "outputs", recipes={"neti": tmp_path / "none.yaml"})
    with pytest.raises(UserError, match=r"recipes.neti = .*none.yaml does not exist"):
        Services(config)
    assert not (tmp_path / "outputs").exists()


def test_paths_stay_inside_the_outputs_folder(tmp_path: Path) -> None:
    places = Places(tmp_path / "outputs")
    places.make()
    (places.pictures / "link.png").symlink_to("/etc/passwd")
    assert places.inside(places.pictures / "1.png") == places.pictures / "1.png"
    for path in ("/etc/passwd", places.pictures / ".." / ".." / ".." / "x", places.pictures / "link.png"):
        with pytest.raises(UserError, match="is not inside the outputs folder"):
            places.inside(path)


def test_every_failure_is_one_safe_line() -> None:
    assert message_of(UserError("no <b>mug</b>\nno cup")) == "no &lt;b&gt;mug&lt;/b&gt;; no cup"
    try:
        raise ValueError("seven\nlines")
    except ValueError as error:
        line = message_of(error)
    assert line.startswith("ValueError: seven (a fault of this program; its traceback is in ") and "\n" not in line
    Path(line.rpartition(" ")[2].rstrip(")")).unlink()


def test_a_guarded_function_stays_what_it_was() -> None:
    class Shown(Exception):
        pass

    def steps(count: int) -> Iterator[int]:
        yield count
        raise UserError("no more")

    def fails(name: str) -> None:
        raise UserError(f"no {name}")

    seen = guarded(steps, Shown)(3)
    assert next(seen) == 3
    for call in (lambda: next(seen), lambda: guarded(fails, Shown)("mug")):
        with pytest.raises(Shown, match="no m"):
            call()
