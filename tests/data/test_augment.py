"""Which region of an image is taken: by hand, by formula, and within its bounds for any draw."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resscale.data.augment import Box, CenterCrop, PadCrop, RandomResizedCrop

SIDES = st.integers(1, 4000)
NONE = np.empty(0)


def draws(count: int) -> st.SearchStrategy[np.ndarray]:
    """Uniforms in [0, 1), the ends among them."""
    one = st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 1 - 2.0**-53])
    return st.lists(one, min_size=count, max_size=count).map(np.array)


# RandomResizedCrop

CROP = RandomResizedCrop(224)


@given(width=SIDES, height=SIDES, uniform=draws(CROP.num_uniforms))
def test_a_random_region_is_of_whole_pixels_inside_the_image(width, height, uniform) -> None:
    box = CROP.box(width, height, uniform)
    assert all(edge == int(edge) for edge in box)
    assert 0 <= box.left < box.right <= width
    assert 0 <= box.top < box.bottom <= height


@given(
    width=st.integers(200, 2000),
    height=st.integers(200, 2000),
    uniform=draws(CROP.num_uniforms),
    low=st.floats(0.05, 0.5),
)
def test_area_and_aspect_are_within_their_ranges_where_an_attempt_fits(
    width: int, height: int, uniform: np.ndarray, low: float
) -> None:
    crop = RandomResizedCrop(224, scale=(low, 0.6), ratio=(3 / 4, 4 / 3))
    uniform[0] = 0.0  # the first attempt: the smallest area, at least 0.05 × 200² = 2,000 pixels
    box = crop.box(width, height, uniform)
    w, h = box.right - box.left, box.bottom - box.top
    if not (math.sqrt(width * height * low * 4 / 3) < min(width, height) - 1):
        return  # the drawn region may not fit
    # Each side is rounded by half a pixel at most.
    assert (w - 0.5) * (h - 0.5) <= width * height * low <= (w + 0.5) * (h + 0.5)
    assert (w + 0.5) / (h - 0.5) >= 3 / 4
    assert (w - 0.5) / (h + 0.5) <= 4 / 3


def test_a_random_region_by_hand() -> None:
    crop = RandomResizedCrop(10, scale=(0.25, 0.5), ratio=(1 / 4, 4), attempts=1)
    assert crop.num_uniforms == 4
    # Area 10,000 × 0.25 = 2,500; aspect 4^(2 × 0.5 - 1) = 1: 50 × 50, at most 50 to the right.
    assert crop.box(100, 100, np.array([0.0, 0.5, 0.0, 0.0])) == Box(0, 0, 50, 50)
    # int(0.5 × 51) = 25 and int(0.999 × 51) = 50
    assert crop.box(100, 100, np.array([0.0, 0.5, 0.5, 0.999])) == Box(25, 50, 75, 100)
    # Aspect 4^(2 × 0.75 - 1) = 2: √(2,500 × 2) = 70.7 wide, √(2,500 / 2) = 35.4 high.
    assert crop.box(100, 100, np.array([0.0, 0.75, 0.0, 0.0])) == Box(0, 0, 71, 35)
    # Area × (0.25 + 0.25 × 0.5) = 3,750, aspect 1: √3,750 = 61.2.
    assert crop.box(100, 100, np.array([0.5, 0.5, 0.0, 0.0])) == Box(0, 0, 61, 61)


def test_the_first_attempt_that_fits_is_taken() -> None:
    crop = RandomResizedCrop(10, scale=(0.25, 1.0), ratio=(1 / 4, 4), attempts=2)
    # First: the whole area at aspect 1/4, 50 × 200 in 100 × 100; second: 2,500 at aspect 1.
    uniform = np.array([0.999, 0.0, 0.0, 0.5, 0.0, 0.0])
    assert crop.box(100, 100, uniform) == Box(0, 0, 50, 50)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (100, 1000, Box(0, 433, 100, 566)),  # 100 / (3/4) = 133 high; (1000 - 133) // 2 = 433
        (1000, 100, Box(433, 0, 566, 100)),  # 100 × 4/3 = 133 wide
        (100, 110, Box(0, 0, 100, 110)),  # a legal aspect: the whole image
        (1, 4000, Box(0, 1999, 1, 2000)),  # 1 / (3/4) = 1.33 high
    ],
)
def test_where_no_attempt_fits_the_largest_central_region_is_taken(width, height, box) -> None:
    crop = RandomResizedCrop(224, scale=(1.5, 1.5))  # more than the image: nothing fits
    assert crop.box(width, height, np.zeros(crop.num_uniforms)) == box


def test_the_same_uniforms_give_the_same_region_and_others_another() -> None:
    generator = np.random.default_rng(3)
    one, two = generator.random((2, CROP.num_uniforms))
    assert CROP.box(500, 375, one) == CROP.box(500, 375, one.copy())
    assert CROP.box(500, 375, one) != CROP.box(500, 375, two)


def test_areas_and_aspects_are_spread_as_drawn() -> None:
    uniform = np.random.default_rng(7).random((2000, CROP.num_uniforms))
    boxes = np.array([CROP.box(512, 512, row) for row in uniform])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    # Uniform on [0.08, 1] has the mean 0.54; large ones fit less often, so a little less.
    assert 0.45 < (w * h / 512**2).mean() < 0.55
    # Log-uniform: wide and high ones are equally likely, 0 ± 4 standard errors (0.166 / √2000).
    assert abs(np.log(w / h).mean()) < 0.015
    centres = (boxes[:, :2] + boxes[:, 2:]).mean(axis=0) / 1024
    assert np.abs(centres - 0.5).max() < 0.02


# PadCrop


@pytest.mark.parametrize(
    ("uniform", "dx", "dy"),
    [
        ((0.0, 0.0), -4, -4),
        ((0.5, 0.5), 0, 0),  # int(0.5 × 9) - 4
        ((0.999, 0.112), 4, -3),  # int(8.99) - 4, int(1.008) - 4
    ],
)
def test_a_padded_crop_is_moved_by_whole_pixels(uniform, dx: int, dy: int) -> None:
    box = PadCrop(32, padding=4).box(32, 32, np.array(uniform))
    assert box == Box(dx, dy, dx + 32, dy + 32)
    # An image twice as wide: a pixel of the result is two of the source.
    assert PadCrop(32).box(64, 32, np.array(uniform)) == Box(2 * dx, dy, 2 * dx + 64, dy + 32)


def test_all_shifts_of_a_padded_crop_are_equally_likely() -> None:
    crop = PadCrop(8, padding=2)
    uniform = np.random.default_rng(0).random((5000, crop.num_uniforms))
    boxes = [crop.box(8, 8, row) for row in uniform]
    for side in (0, 1):
        values, counts = np.unique([box[side] for box in boxes], return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert ((counts - 1000) ** 2 / 1000).sum() < 18.5  # 4 degrees of freedom, 0.999


# CenterCrop


def torchvision_formulas(width: int, height: int, size: int, resize: int) -> Box:
    """Resize(resize) then CenterCrop(size) of torchvision 0.2x, as a region of the source."""
    short, long = min(width, height), max(width, height)
    new_short, new_long = resize, int(resize * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    top = int(round((new_height - size) / 2.0))  # noqa: RUF046 - as torchvision writes it
    left = int(round((new_width - size) / 2.0))  # noqa: RUF046
    x, y = width / new_width, height / new_height
    return Box(left * x, top * y, (left + size) * x, (top + size) * y)


@given(width=SIDES, height=SIDES, size=st.integers(1, 256), extra=st.integers(0, 64))
def test_the_central_region_is_torchvisions(width, height, size: int, extra: int) -> None:
    box = CenterCrop(size, size + extra).box(width, height, NONE)
    assert box == torchvision_formulas(width, height, size, size + extra)
    slack = 1e-9 * max(width, height)
    assert box.left >= 0
    assert box.top >= 0
    assert box.right <= width + slack
    assert box.bottom <= height + slack


def test_the_central_region_by_hand() -> None:
    # 500 × 375 to 341 × 256 (int(256 × 500 / 375) = 341); left round(117 / 2 = 58.5) = 58 (to
    # even), top 16. One resized pixel is 500 / 341 by 375 / 256 of the source.
    box = CenterCrop(224, 256).box(500, 375, NONE)
    x, y = 500 / 341, 375 / 256
    assert box == pytest.approx((58 * x, 16 * y, 282 * x, 240 * y))
    assert CenterCrop(8, 8).box(8, 8, NONE) == Box(0, 0, 8, 8)


@pytest.mark.parametrize("crop", [RandomResizedCrop(32), CenterCrop(32, 36), PadCrop(32, 4)])
def test_a_crop_of_another_size_takes_the_same_part_of_the_image(crop) -> None:
    small = crop.at_size(16)
    assert small.size == 16
    assert crop.size == 32  # as it was
    uniform = np.full(crop.num_uniforms, 0.9)
    # 36 / 32 of 64 pixels and 4 / 32 of it are whole, so that no rounding is in between.
    box, other = crop.box(64, 64, uniform), small.box(64, 64, uniform)
    assert other == pytest.approx(box)
    assert type(other) is type(box)


def test_a_crop_of_another_size_keeps_its_shares() -> None:
    assert PadCrop(32, 4).at_size(24) == PadCrop(24, 3)
    assert CenterCrop(224, 256).at_size(160) == CenterCrop(160, 183)  # 160 × 256 / 224 = 182.9
    crop = RandomResizedCrop(224, (0.3, 0.9), (0.5, 2.0))
    assert crop.at_size(128) == RandomResizedCrop(128, (0.3, 0.9), (0.5, 2.0))
