"""Operations on colours give Pillow's bytes, on photographs and at the edges of their ranges."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from sample_photos import crops, from_pillow, to_pillow
from torch import Tensor

from resscale.training import image_ops

Operation = Callable[[Tensor, Tensor], Tensor]
Pillows = Callable[[Image.Image, Any], Image.Image]
# 0.01 to 1.99 are TrivialAugment's factors, 0 and 2 lie beyond.
FACTORS = [0.0, 0.01, 0.1, 0.37, 0.5, 0.73, 0.999, 1.0, 1.001, 1.27, 1.5, 1.9, 1.99, 2.0]


def added(image: Image.Image, amount: int) -> Image.Image:
    """What SolarizeAdd of the TPU's RandAugment does, by Pillow's table of levels."""
    table = [min(255, level + amount) if level < 128 else level for level in range(256)]
    return image.point(table * len(image.getbands()))


CASES: dict[str, tuple[Operation, Pillows, list[Any]]] = {
    "brightness": (
        image_ops.brightness,
        lambda image, value: ImageEnhance.Brightness(image).enhance(value),
        FACTORS,
    ),
    "color": (
        image_ops.color,
        lambda image, value: ImageEnhance.Color(image).enhance(value),
        FACTORS,
    ),
    "contrast": (
        image_ops.contrast,
        lambda image, value: ImageEnhance.Contrast(image).enhance(value),
        FACTORS,
    ),
    "sharpness": (
        image_ops.sharpness,
        lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
        FACTORS,
    ),
    "posterize": (image_ops.posterize, ImageOps.posterize, [1, 2, 3, 4, 5, 6, 7, 8]),
    "solarize": (image_ops.solarize, ImageOps.solarize, [0.0, 0.5, 1, 127.5, 178.5, 255.0, 256]),
    "solarize_add": (image_ops.solarize_add, added, [0, 1, 77, 127, 128]),
    "invert": (image_ops.invert, lambda image, value: ImageOps.invert(image), [0, 0]),
    "auto_contrast": (
        image_ops.auto_contrast,
        lambda image, value: ImageOps.autocontrast(image),
        [0] * 8,
    ),
    "equalize": (image_ops.equalize, lambda image, value: ImageOps.equalize(image), [0] * 8),
}


def check(images: Tensor, operation: Operation, pillows: Pillows, values: list[Any]) -> None:
    """The batch's result is Pillow's of each image, and the batch itself is not changed."""
    before = images.clone()
    results = operation(images, torch.tensor(values, dtype=torch.float64))
    assert torch.equal(images, before)
    assert results.dtype == torch.uint8
    for image, result, value in zip(images, results, values, strict=True):
        assert torch.equal(result, from_pillow(pillows(to_pillow(image), value))), value


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_photographs_come_out_as_pillow_makes_them(name: str, channels: int) -> None:
    operation, pillows, values = CASES[name]
    check(crops(len(values), channels), operation, pillows, values)


@pytest.mark.parametrize("name", CASES)
def test_the_memory_layout_does_not_matter(name: str) -> None:
    operation, pillows, values = CASES[name]
    check(crops(len(values)).contiguous(), operation, pillows, values)


@pytest.mark.parametrize("height", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_tiny_images_come_out_as_pillow_makes_them(name: str, height: int) -> None:
    operation, pillows, values = CASES[name]
    check(crops(len(values), height=height, width=4), operation, pillows, values)


@pytest.mark.parametrize("name", ["auto_contrast", "equalize", "contrast"])
def test_images_of_one_colour_come_out_as_pillow_makes_them(name: str) -> None:
    operation, pillows, _ = CASES[name]
    colours = torch.tensor([[0, 0, 0], [255, 255, 255], [3, 90, 201]], dtype=torch.uint8)
    check(colours.view(3, 3, 1, 1).expand(3, 3, 9, 20).clone(), operation, pillows, [1.3] * 3)


def test_each_range_of_levels_is_stretched_to_pillows_bytes() -> None:
    # Where 255 / range is no fraction of two, Pillow's double precision cuts off at 254 or 255:
    # 7 levels and 25 levels are such ranges.
    lows = np.repeat(np.arange(0, 250, 5), 3)
    highs = np.minimum(lows + np.tile([7, 25, 130], 50), 255)
    levels = np.arange(256, dtype=np.uint8)
    ranges = zip(lows.tolist(), highs.tolist(), strict=True)
    made = [levels.clip(low, high).reshape(1, 16, 16) for low, high in ranges]
    images = torch.from_numpy(np.stack(made))
    results = image_ops.auto_contrast(images, torch.zeros(len(images)))
    for image, result in zip(images, results, strict=True):
        assert torch.equal(result, from_pillow(ImageOps.autocontrast(to_pillow(image))))


def test_equalised_levels_may_exceed_a_byte_and_are_cut_off() -> None:
    # 510 pixels of few levels: steps of (510 - last) // 255 = 1 lead to levels above 255.
    images = torch.zeros(1, 1, 17, 30, dtype=torch.uint8)
    images.view(-1)[:300] = 10
    images.view(-1)[300:509] = 20
    images.view(-1)[509] = 30
    result = image_ops.equalize(images, torch.zeros(1))
    assert torch.equal(result[0], from_pillow(ImageOps.equalize(to_pillow(images[0]))))
    assert result[0, 0, 16, 29] == 255
