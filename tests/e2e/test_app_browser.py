"""The page in a real browser: a short learning, the slider, cancelling, reloading, bad uploads, a phone.

NETI_SCREENSHOTS=folder keeps a picture of each step.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from app_parts import new_neti, put_concept, write_photos, write_recipe

from neti.models.backbone.backbone import Backbone

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium here: apt-get install chromium, and the page is tested too", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).parents[2]
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
PATIENCE = 120_000  # milliseconds; a loaded machine takes its time
Open = Callable[..., "playwright.Page"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, tiny_backbone_folder: Path) -> Path:
    """Two concepts of the tiny backbone, and the recipe that it learns by."""
    folder = tmp_path_factory.mktemp("app")
    backbone = Backbone.from_pretrained(str(tiny_backbone_folder), components=("text_encoder",))
    photos = write_photos(folder / "photos")[0].parent
    for seed, name in enumerate(("toy", "cat")):
        put_concept(folder / "outputs", name, new_neti(backbone, seed), tiny_backbone_folder, photos)
    write_recipe(folder, tiny_backbone_folder)
    return folder / "outputs"


@pytest.fixture(scope="module")
def address(outputs: Path) -> Iterator[str]:
    """Where the page is served, by the script that a person calls."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    recipes = f"{{neti: {outputs.parent / 'recipe.yaml'}}}"
    options = [
        f"--outputs={outputs}",
        f"--port={port}",
        f"--recipes={recipes}",
        "--device=cpu",
        "--judge=miniature-judge",
    ]
    command = [sys.executable, str(ROOT / "scripts" / "app.py"), *options, "--num_denoising_steps=4"]
    with open(outputs.parent / "server.txt", "w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
    try:
        deadline = time.monotonic() + 3 * PATIENCE / 1000
        while "the page is at" not in (text := (outputs.parent / "server.txt").read_text()):
            assert server.poll() is None and time.monotonic() < deadline, text
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def open_page(address: str) -> Iterator[Open]:
    """Open the page; at the end no page has asked any other machine for anything."""
    asked: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def open_it(width: int = 1280, height: int = 900, tab: str | None = None) -> playwright.Page:
            page = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
            page.set_default_timeout(PATIENCE)
            page.on("request", lambda request: asked.append(request.url))
            page.goto(address)
            page.wait_for_selector("#learn")
            if tab is not None:
                page.get_by_role("tab", name=tab, exact=True).click()
            return page

        yield open_it
        browser.close()
    assert asked
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def text_has(page: playwright.Page, place: str, words: str) -> None:
    """Wait until an element's text holds the words."""
    playwright.expect(page.locator(place)).to_contain_text(re.compile(words), timeout=PATIENCE)


def sources(page: playwright.Page) -> list[str]:
    """The addresses of the drawn images."""
    return [str(image.get_attribute("src")) for image in page.locator("#generate-pictures img").all()]


def keep(page: playwright.Page, name: str) -> None:
    if folder := os.environ.get("NETI_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def choose(page: playwright.Page, place: str, option: str) -> None:
    """An option of a drop-down."""
    page.click(f"{place} input")
    page.get_by_role("option", name=option, exact=True).click()


def give(page: playwright.Page, button: str, file: Path) -> None:
    """Choose a file for a button that uploads one."""
    with page.expect_file_chooser() as choosing:
        page.click(button)
    choosing.value.set_files(file)


def test_a_training_is_followed_found_again_and_stopped(open_page: Open, outputs: Path) -> None:
    page = open_page(tab="Learn")
    bad = outputs.parent / "holiday.jpg"
    bad.write_text("no image")
    photos = sorted((outputs.parent / "photos").iterdir())
    page.set_input_files("#photos input[type=file]", [*photos, bad])
    text_has(page, "#problems", "holiday.jpg cannot be read")
    assert page.locator("#seen img").count() == 4, "three photos, and a card for the bad one"
    page.fill("#word textarea, #word input", "toy")
    page.fill("#name textarea, #name input", "no name")
    page.click("#learn")
    text_has(page, "body", "is no name for a concept")
    page.fill("#name textarea, #name input", "mug")
    page.click("#learn-more button")
    page.fill("#learn-steps input", "20000")
    page.click("#learn")
    text_has(page, "#run-status", r"mug · training · step [1-9]\d* of 20000 .* left")
    keep(page, "learn")

    page.reload()
    text_has(page, "#run-status", "mug · training · step")
    playwright.expect(page.locator("#run input")).to_have_value("mug")
    page.close()  # nobody looks any more, and it goes on

    other = open_page(tab="Generate")  # and does not keep others from drawing
    choose(other, "#concept", "toy")
    other.click("#generate-draw")
    text_has(other, "#generate-status", "4 images drawn")
    other.get_by_role("tab", name="Learn", exact=True).click()
    text_has(other, "#run-status", "mug · training · step")
    other.click("#stop")
    text_has(other, "#run-status", "mug · stopped · step")
    assert list((outputs / "mug").glob("concept-steps-*.safetensors")), "what it had learned is saved"
    other.close()


def test_the_slider_changes_the_picture_and_its_recipe_comes_back(open_page: Open, outputs: Path) -> None:
    page = open_page(tab="Generate")
    choose(page, "#concept", "cat")
    page.fill("#seeds textarea, #seeds input", "5")
    page.click("#generate-draw")
    text_has(page, "#generate-status", "1 image drawn")
    [whole] = sources(page)
    page.locator("#truncation input[type=range]").click(position={"x": 20, "y": 4})
    text_has(page, "#generate-pictures", r"\d+ units · seed 5")
    kept = re.findall(r"(\d+) units", page.inner_text("#generate-pictures"))[0]
    text_has(page, "#generate-status", "1 image drawn")
    [truncated] = sources(page)
    one, other = (page.request.get(url).body() for url in (whole, truncated))
    assert one[:4] == other[:4] == b"\x89PNG" and one != other
    page.locator("#generate-pictures img").first.click()
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download this image, its recipe inside").click()
    saved = outputs.parent / "saved.png"
    downloading.value.save_as(saved)

    page.reload()
    page.get_by_role("tab", name="Generate", exact=True).click()
    page.wait_for_selector("#truncation input[type=range]")
    give(page, "#restore", saved)
    text_has(page, "#generate-status", "restored from saved.png")
    playwright.expect(page.locator("#concept input")).to_have_value("cat")
    playwright.expect(page.locator("#truncation input[type=range]")).to_have_value(kept)
    give(page, "#restore", outputs.parent / "photos" / "0.png")
    text_has(page, "body", "0.png carries no recipe")
    page.close()


def test_cancelling_leaves_a_page_that_draws_the_next_picture(open_page: Open) -> None:
    page = open_page(tab="Generate")
    choose(page, "#concept", "toy")
    page.fill("#seeds textarea, #seeds input", "0-31")
    page.get_by_role("button", name="More").last.click()
    page.fill("#steps input[type=number]", "100")
    page.click("#generate-draw")
    text_has(page, "#generate-status", r"step [1-9]\d* of 3200")
    page.click("#generate-cancel")
    text_has(page, "#generate-status", "cancelled")
    page.fill("#seeds textarea, #seeds input", "1")
    page.fill("#steps input[type=number]", "3")
    page.click("#generate-draw")
    text_has(page, "#generate-status", "1 image drawn")
    page.close()


def test_two_concepts_mix_by_a_map_one_can_click(open_page: Open) -> None:
    page = open_page(tab="Mix")
    page.wait_for_selector("#map button")
    cells = page.locator("#map button.second").count()
    page.locator("#map button.first").first.click()
    playwright.expect(page.locator("#map button.second")).to_have_count(cells + 1)
    page.click("#mix-draw")
    text_has(page, "#mix-status", "9 images drawn")
    page.close()


def test_what_is_wrong_is_one_line_and_never_a_traceback(open_page: Open) -> None:
    page = open_page(tab="From one photo")
    text_has(page, "#no-encoder", r"^\s*$|encoder 'miniature': does not come with this version")
    page.click("#photo-draw")
    text_has(page, "body", "drop a photo first")
    page.get_by_role("tab", name="Generate", exact=True).click()
    page.fill("#prompt textarea, #prompt input", "A photo of <i>a</i> {unicorn}")
    page.click("#generate-draw")
    text_has(page, "body", "there is no concept called 'unicorn'")
    assert "Traceback" not in page.inner_text("body")
    assert page.request.get(f"{page.url}gradio_api/file=/etc/passwd").status == 403
    page.close()


def test_a_comparison_shows_the_pictures_behind_a_point(open_page: Open) -> None:
    page = open_page(tab="Compare")
    choose(page, "#compared", "toy")
    page.keyboard.press("Escape")
    page.click("#measure")
    text_has(page, "#compare-status", "4 points")
    page.locator("#numbers tr[data-point]").nth(1).click()
    playwright.expect(page.locator("#behind img")).to_have_count(6)
    page.close()


def test_a_phone_needs_no_scrolling_sideways(open_page: Open) -> None:
    page = open_page(width=375, height=720)
    for tab in ("Learn", "Generate", "Mix"):
        page.get_by_role("tab", name=tab, exact=True).click()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375, tab
        keep(page, f"phone-{tab.lower()}")
    page.close()
