"""The pictures in docs/app.md, taken of a running page whose library holds a taxi and a tiger:

python tests/e2e/app_pictures.py http://127.0.0.1:7860/ docs/images
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

PATIENCE = 300_000  # milliseconds
PHOTOS = sorted((Path(__file__).parents[2] / "input_configs" / "concepts" / "teapot").glob("*.png"))


def take(page: Page, folder: Path, name: str) -> None:
    """Save what the window shows, small enough for a page of documentation."""
    page.wait_for_timeout(1500)
    path = folder / f"app_{name}.png"
    page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").save(path.with_suffix(".jpg"), quality=88)
    path.unlink()


def drawn(page: Page, tab: str) -> None:
    page.click(f"#{tab}-draw")
    expect(page.locator(f"#{tab}-status")).to_contain_text("drawn", timeout=PATIENCE)


def option(page: Page, place: str, name: str) -> None:
    page.click(f"{place} input")
    page.get_by_role("option", name=name, exact=True).click()


def main(address: str, folder: Path) -> None:
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1200, "height": 860})
        page.set_default_timeout(PATIENCE)
        page.goto(address)

        page.get_by_role("tab", name="Generate", exact=True).click()
        option(page, "#concept", "taxi")
        page.get_by_label("truncation", exact=True).check()
        page.fill("#prompt textarea, #prompt input", "A photo of {} on a beach")
        drawn(page, "generate")
        take(page, folder, "generate")

        page.get_by_role("tab", name="Mix", exact=True).click()
        option(page, "#first", "tiger")
        option(page, "#second", "taxi")
        page.wait_for_timeout(1500)
        drawn(page, "mix")
        take(page, folder, "mix")

        page.get_by_role("tab", name="Compare", exact=True).click()
        for name in ("taxi", "tiger"):
            option(page, "#compared", name)
        page.keyboard.press("Escape")
        page.click("#measure")
        expect(page.locator("#compare-status")).to_contain_text("points", timeout=PATIENCE)
        page.locator("#numbers tr[data-point]").nth(1).click()
        page.locator("#behind img").first.wait_for()
        take(page, folder, "compare")

        page.get_by_role("tab", name="Learn", exact=True).click()
        page.set_input_files("#photos input[type=file]", PHOTOS)
        page.locator("#seen img").first.wait_for()
        page.fill("#name textarea, #name input", "teapot")
        page.fill("#word textarea, #word input", "cup")
        page.click("#learn")
        expect(page.locator("#run-status")).to_contain_text(re.compile(r"step [2-9]\d of"), timeout=PATIENCE)
        take(page, folder, "learn")
        page.click("#stop")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
