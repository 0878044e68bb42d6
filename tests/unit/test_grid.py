"""Labelled grids: every tile keeps its pixels, labels have room, nothing overlaps."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from neti.utils.images import labelled_grid

LONG = "A painting of <toy> in the style of Monet, with supercalifragilisticexpialidocious details"
COLOURS = [(200, 30, 30), (30, 160, 30), (30, 30, 200), (200, 160, 30), (30, 160, 160), (160, 30, 160)]


def tiles(size: int, rows: int, columns: int) -> list[list[Image.Image]]:
    return [[Image.new("RGB", (size, size), COLOURS[r * columns + c]) for c in range(columns)] for r in range(rows)]


def box_of(grid: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the pixels of one colour, which must fill their box."""
    ys, xs = np.nonzero((grid == colour).all(axis=-1))
    box = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    assert len(xs) == (box[2] - box[0]) * (box[3] - box[1])
    return box


@pytest.mark.parametrize("size", [64, 512])
def test_every_tile_is_whole_and_in_its_place(size: int) -> None:
    grid = np.asarray(
        labelled_grid(tiles(size, 2, 3), ["A photo of a <toy>", LONG], ["seed 1", "seed 2", LONG], "Step 250")
    )
    boxes = [box_of(grid, colour) for colour in COLOURS]
    assert {(right - left, bottom - top) for left, top, right, bottom in boxes} == {(size, size)}
    for row in (boxes[:3], boxes[3:]):
        assert len({top for _, top, _, _ in row}) == 1
        assert row[0][2] < row[1][0] < row[1][2] < row[2][0]
    assert boxes[0][3] < boxes[3][1]
    assert grid.shape[1] - boxes[2][2] > 4  # a margin
    assert grid.shape[0] - boxes[3][3] > 4


@pytest.mark.parametrize("size", [64, 512])
def test_labels_are_drawn_beside_the_tiles_and_never_cut(size: int) -> None:
    plain = np.asarray(labelled_grid(tiles(size, 1, 1)))
    labelled = np.asarray(labelled_grid(tiles(size, 1, 1), [LONG], [LONG], LONG))
    left, top, right, bottom = box_of(labelled, COLOURS[0])
    assert (labelled[:, : left - 1] < 128).any(), "row label"
    assert (labelled[: top - 1, left:right] < 128).any(), "column label or title"
    edges = [labelled[:4], labelled[-4:], labelled[:, :4], labelled[:, -4:]]
    assert all((edge == 255).all() for edge in edges), "text reaches the edge"
    assert labelled.shape[0] > plain.shape[0]
    assert labelled.shape[1] > plain.shape[1]
    assert labelled.shape[0] >= bottom


def test_a_word_of_thousands_of_letters_is_shortened() -> None:
    """Breaking it into lines by trying every length would take minutes."""
    plain = labelled_grid(tiles(64, 1, 1), ["x" * 400], ["x" * 400], "x" * 400)
    long = labelled_grid(tiles(64, 1, 1), ["x" * 10**6], ["x" * 10**6], "x" * 10**6)
    assert long.width == plain.width and long.height < 1.1 * plain.height


def test_a_row_grows_with_a_label_taller_than_its_tile() -> None:
    grid = np.asarray(labelled_grid(tiles(64, 2, 1), [LONG * 3, ""]))
    first, second = box_of(grid, COLOURS[0]), box_of(grid, COLOURS[1])
    assert second[1] - first[3] > 64


def test_ragged_rows_and_tiles_of_different_sizes() -> None:
    sizes = [(64, 64), (32, 48), (64, 64)]
    first, second, third = (Image.new("RGB", size, colour) for size, colour in zip(sizes, COLOURS, strict=False))
    rows = [[first, second], [third]]
    grid = np.asarray(labelled_grid(rows, ["a", "b"], ["1", "2"]))
    boxes = [box_of(grid, colour) for colour in COLOURS[:3]]
    assert [(b[2] - b[0], b[3] - b[1]) for b in boxes] == sizes


def test_labels_that_do_not_fit_the_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="1 row labels for 2 rows"):
        labelled_grid(tiles(8, 2, 1), ["a"])
    with pytest.raises(ValueError, match="3 column labels for 1 columns"):
        labelled_grid(tiles(8, 2, 1), [], ["a", "b", "c"])
    with pytest.raises(ValueError, match="at least one image"):
        labelled_grid([])
