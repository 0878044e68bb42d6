"""From an image to a square, or to a bucket of about its shape."""

from __future__ import annotations

import pytest
from image_files import BLUE, GREEN, RED, WHITE, half_and_half
from PIL import Image

from neti.utils.images import SquareMode, to_square


def test_stretch_uses_the_whole_image() -> None:
    image = to_square(half_and_half((64, 16)), 32)
    assert image.size == (32, 32)
    assert (image.getpixel((0, 16)), image.getpixel((31, 16))) == (RED, BLUE)


@pytest.mark.parametrize("size", [(65, 16), (16, 65)])
def test_crop_keeps_the_centre(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, RED)
    left, top = (size[0] - 16) // 2, (size[1] - 16) // 2
    image.paste(GREEN, (left, top, left + 16, top + 16))
    square = to_square(image, 8, SquareMode.crop)
    assert square.size == (8, 8)
    assert square.getcolors() == [(64, GREEN)]


def test_pad_keeps_all_and_adds_white() -> None:
    square = to_square(Image.new("RGB", (40, 20), RED), 32, SquareMode.pad)
    assert square.size == (32, 32)
    assert [square.getpixel((16, y)) for y in (0, 7, 8, 23, 24, 31)] == [WHITE, WHITE, RED, RED, WHITE, WHITE]


@pytest.mark.parametrize(
    ("shape", "resolution", "expected"),
    [
        ((1000, 1000), 512, (512, 512)),
        ((4000, 3000), 512, (576, 448)),
        ((3000, 4000), 512, (448, 576)),
        ((1920, 1080), 512, (640, 384)),
        ((9000, 100), 512, (1024, 256)),
        ((4000, 3000), 1024, (1152, 896)),
        ((500, 500), 504, (504, 504)),
        ((80, 40), 64, (88, 40)),
        ((10, 10), 8, (8, 8)),
    ],
)
def test_a_bucket_has_the_shape_and_the_size(
    shape: tuple[int, int], resolution: int, expected: tuple[int, int]
) -> None:
    assert to_square(Image.new("RGB", shape), resolution, SquareMode.bucket).size == expected


def test_a_bucket_keeps_the_centre_unstretched() -> None:
    image = Image.new("RGB", (2000, 100), RED)
    image.paste(GREEN, (800, 0, 1200, 100))
    fitted = to_square(image, 64, SquareMode.bucket)
    assert fitted.size == (128, 32)
    assert {fitted.getpixel((x, 16)) for x in range(2, 126)} == {GREEN}
