"""Pages with a measured part: only that part changes, and a page without a place for it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from neti.training.studies.page import BEGIN, END, measured_part, replace_chapter, replace_measured_part
from neti.utils.errors import UserError

DOCS = Path(__file__).parents[2] / "docs"


def test_only_the_measured_part_of_a_page_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# By hand\n{BEGIN}\nold\n{END}\nalso by hand\n")
    for text in ("first", "second\n"):
        replace_measured_part(page, text)
    assert page.read_text() == f"# By hand\n{BEGIN}\n\nsecond\n\n{END}\nalso by hand\n"


def test_a_chapter_replaces_its_own_and_no_other(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# By hand\n{BEGIN}\n{END}\n")
    for name, text in [("here", "one\n\n#### table\n1"), ("there", "two"), ("here", "three\n\n#### table\n3")]:
        replace_chapter(page, name, text)
    assert measured_part(page)[1].strip() == "### here\n\nthree\n\n#### table\n3\n\n### there\n\ntwo"


def test_a_page_without_a_place_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# By hand\n")
    with pytest.raises(UserError, match="no place for the numbers"):
        replace_measured_part(page, "lost")
    with pytest.raises(UserError, match="check docs_dir"):
        measured_part(tmp_path / "none.md")


@pytest.mark.parametrize("name", ["performance.md", "miniature.md", "style_mixing.md", "several_concepts.md"])
def test_the_projects_pages_have_a_place_for_the_numbers(name: str) -> None:
    assert measured_part(DOCS / name)
