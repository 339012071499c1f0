"""Where regions lie in image and sample, and that a part of the image is enough to resize them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from odd_images import HEIGHT, WIDTH, photo
from PIL import Image

from resscale.data.augment import Box, CenterCrop, Cut
from resscale.data.decode import Pixels
from resscale.data.decode_region import (
    Region,
    pixels_needed,
    region_of,
    resize_pixels,
    resize_with_pillow,
)

PIXELS: Pixels = np.array(photo())


def psnr(one: Pixels, other: Pixels) -> float:
    error = ((one.astype(float) - other.astype(float)) ** 2).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def test_a_box_inside_the_image_fills_the_sample() -> None:
    region = region_of(Box(1.5, 2, 7.5, 8), 10, 10, 4)
    assert region == Region(Box(1.5, 2, 7.5, 8), 0, 0, 4, 4)
    assert region.fills(4)
    assert not region.is_empty


def test_what_hangs_over_the_edge_leaves_its_place_empty() -> None:
    # 12 pixels become 6: 2 of them to the left of the image are 1 of the sample.
    region = region_of(Box(-2, 0, 10, 12), 20, 8, 6)
    assert region == Region(Box(0, 0, 10, 8), 1, 0, 6, 4)
    assert not region.fills(6)


def test_a_box_beside_the_image_is_empty() -> None:
    assert region_of(Box(50, 50, 54, 54), 6, 6, 4).is_empty


def test_a_cut_stays_a_cut() -> None:
    assert isinstance(region_of(Cut(1, 2, 5, 6), 10, 10, 4).source, Cut)
    assert not isinstance(region_of(Box(1, 2, 5, 6), 10, 10, 4).source, Cut)


def test_a_cut_needs_its_own_pixels() -> None:
    assert pixels_needed(region_of(Cut(3, 4, 9, 8), 20, 20, 2), 20, 20) == (3, 4, 9, 8)


def test_another_box_needs_what_its_filter_reaches() -> None:
    # 3 source pixels become 1: the filter reaches 3 to each side, and 1 for rounding.
    region = region_of(Box(30.5, 12, 60.5, 42), 100, 44, 10)
    assert pixels_needed(region, 100, 44) == (26, 8, 65, 44)  # 30.5 - 4, 12 - 4, 60.5 + 4; the edge


@pytest.mark.parametrize("size", [20, 64, 224])
@pytest.mark.parametrize(
    "box",
    [
        Box(10.3, 20.7, 200.1, 190.9),
        Box(0, 0, WIDTH, HEIGHT),
        Box(100.5, 50.25, 130.75, 80.5),
        Box(-20, -10, 150, 160),
        Cut(17, 31, 217, 161),
        Cut(120, 90, 150, 111),
    ],
)
def test_the_pixels_needed_give_the_picture_of_the_whole_image(box: Box, size: int) -> None:
    region = region_of(box, WIDTH, HEIGHT, size)
    left, top, right, bottom = pixels_needed(region, WIDTH, HEIGHT)
    found, expected = (np.full((size, size, 3), 77, dtype=np.uint8) for _ in range(2))
    resize_pixels(PIXELS[top:bottom, left:right], left, top, region, found)
    resize_with_pillow(Image.fromarray(PIXELS), region, expected)
    # Pillow and torch differ by one in some pixels: other order of rows and columns.
    assert psnr(found, expected) > 52
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_a_cut_is_torchvisions_crop_then_resize() -> None:
    expected = photo().crop((17, 31, 217, 161)).resize((64, 64), Image.Resampling.BILINEAR)
    found = np.empty((64, 64, 3), dtype=np.uint8)
    resize_with_pillow(photo(), region_of(Cut(17, 31, 217, 161), WIDTH, HEIGHT, 64), found)
    assert np.array_equal(found, np.asarray(expected))


def test_around_a_box_that_is_no_cut_pixels_take_part() -> None:
    image = Image.fromarray(np.repeat(np.uint8([[0] * 4 + [255] * 4]), 8, axis=0))
    seen = {}
    for kind in (Box, Cut):
        out = np.empty((2, 2, 1), dtype=np.uint8)
        resize_with_pillow(image, region_of(kind(4, 0, 8, 4), 8, 8, 2), out)
        seen[kind] = out[0, 0, 0]
    assert seen[Cut] == 255  # nothing but white was cut out
    # Two pixels become one: weights 1/8 3/8 3/8 1/8 over one black pixel and three white ones.
    assert seen[Box] == round(255 * 7 / 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_at_their_own_size_are_copied(channels: int) -> None:
    pixels = PIXELS[:, :, :channels]
    out = np.empty((50, 50, channels), dtype=np.uint8)
    resize_pixels(pixels, 0, 0, region_of(Cut(7, 9, 57, 59), WIDTH, HEIGHT, 50), out)
    assert np.array_equal(out, pixels[9:59, 7:57])


def test_only_the_row_of_the_batch_is_written() -> None:
    batch = np.full((3, 32, 32, 3), 77, dtype=np.uint8)
    region = region_of(CenterCrop(32, 40).box(WIDTH, HEIGHT, np.empty(0)), WIDTH, HEIGHT, 32)
    resize_pixels(PIXELS, 0, 0, region, batch[1])
    resize_pixels(PIXELS, 0, 0, region_of(Cut(0, 0, 90, 90), WIDTH, HEIGHT, 32), batch[1])
    assert (batch[[0, 2]] == 77).all()
    assert (batch[1] != 77).any()
