"""Shears, shifts and turns give Pillow's bytes, and look where they should."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sample_photos import crops, from_pillow, to_pillow
from torch import Tensor

from resscale.training import image_geometry

Floats = npt.NDArray[np.float64]
HEIGHT, WIDTH = 53, 70
RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}
FILLS = {1: (7,), 3: (124, 116, 104)}
AMOUNTS = np.linspace(-0.99, 0.99, 19)
# Halves, and what lies next to them: Pillow adds 1/2 to find the pixel.
PIXELS = np.array([0, 1, -1, 32, -32, 0.5, -0.5, 0.4999999, -0.5000001, 7.3, -7.7, 80, -80])
DEGREES = np.concatenate((np.linspace(-135, 135, 31), [180.0, -180.0, 0.3]))
Matrix = tuple[float, float, float, float, float, float]
# Our matrices of values, and Pillow's of one value.
CASES: dict[str, tuple[Callable[[Floats], Floats], Callable[[float], Matrix], Floats]] = {
    "shear_x": (image_geometry.shear_x_matrices, lambda v: (1, v, 0, 0, 1, 0), AMOUNTS),
    "shear_y": (image_geometry.shear_y_matrices, lambda v: (1, 0, 0, v, 1, 0), AMOUNTS),
    "shift_x": (image_geometry.shift_x_matrices, lambda v: (1, 0, v, 0, 1, 0), PIXELS),
    "shift_y": (image_geometry.shift_y_matrices, lambda v: (1, 0, 0, 0, 1, v), PIXELS),
}


def transform(images: Tensor, matrices: Floats, how: str) -> Tensor:
    fill = torch.tensor(FILLS[images.shape[1]], dtype=torch.uint8)
    if how == "bilinear":
        return image_geometry.affine_bilinear(images, torch.from_numpy(matrices), fill)
    fixed = torch.from_numpy(image_geometry.fixed_point(matrices))
    return image_geometry.affine_nearest(images, fixed, fill)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", RESAMPLING)
@pytest.mark.parametrize("name", CASES)
def test_photographs_are_moved_as_pillow_moves_them(name: str, how: str, channels: int) -> None:
    matrices, pillows, values = CASES[name]
    images = crops(len(values), channels, HEIGHT, WIDTH)
    before = images.clone()
    results = transform(images, matrices(values), how)
    assert torch.equal(images, before)
    fill = FILLS[channels] if channels == 3 else FILLS[channels][0]
    for image, result, value in zip(images, results, values.tolist(), strict=True):
        expected = to_pillow(image).transform(
            (WIDTH, HEIGHT),
            Image.Transform.AFFINE,
            pillows(value),
            resample=RESAMPLING[how],
            fillcolor=fill,
        )
        assert torch.equal(result, from_pillow(expected)), value


@pytest.mark.parametrize("size", [(53, 70), (48, 48), (31, 31)])
@pytest.mark.parametrize("how", RESAMPLING)
def test_photographs_are_turned_as_pillow_turns_them(how: str, size: tuple[int, int]) -> None:
    images = crops(len(DEGREES), 3, *size)
    results = transform(images, image_geometry.rotation_matrices(DEGREES, *size), how)
    for image, result, degrees in zip(images, results, DEGREES.tolist(), strict=True):
        expected = to_pillow(image).rotate(degrees, resample=RESAMPLING[how], fillcolor=FILLS[3])
        assert torch.equal(result, from_pillow(expected)), degrees


@pytest.mark.parametrize("how", RESAMPLING)
def test_a_positive_shift_takes_pixels_from_the_right(how: str) -> None:
    images = crops(1)
    moved = transform(images, image_geometry.shift_x_matrices(np.array([3.0])), how)
    assert torch.equal(moved[..., :-3], images[..., 3:])
    assert moved[0, :, 0, -1].tolist() == list(FILLS[3])


def test_a_quarter_turn_is_counterclockwise() -> None:
    images = crops(1, height=40, width=40)
    turned = transform(
        images, image_geometry.rotation_matrices(np.array([90.0]), 40, 40), "nearest"
    )
    assert torch.equal(turned, images.rot90(1, (2, 3)))


@pytest.mark.parametrize("how", RESAMPLING)
def test_the_memory_layout_does_not_matter(how: str) -> None:
    images = crops(len(AMOUNTS))
    matrices = image_geometry.shear_x_matrices(AMOUNTS)
    plain = transform(images.contiguous(), matrices, how)
    assert torch.equal(transform(images, matrices, how), plain)
