"""A policy on a micro-batch: each row gets its own operations, and Pillow's bytes."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from sample_photos import crops, from_pillow, to_pillow

from resscale.training.apply_policy import OPERATIONS, Layer, apply_layers, fill_levels
from resscale.training.policies import PolicyConfig, draw_policy

CPU = torch.device("cpu")
SIZE = 48


def by_pillow(image: Image.Image, operation: str, value: float, how: int, fill: Any) -> Image.Image:
    """The operation of a row by Pillow's own functions."""
    enhancers = {
        "brightness": ImageEnhance.Brightness,
        "color": ImageEnhance.Color,
        "contrast": ImageEnhance.Contrast,
        "sharpness": ImageEnhance.Sharpness,
    }
    matrices = {
        "shear_x": (1, value, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, value, 1, 0),
        "translate_x": (1, 0, value, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, value),
    }
    if operation in enhancers:
        return enhancers[operation](image).enhance(value)
    if operation in matrices:
        affine = Image.Transform.AFFINE
        return image.transform(image.size, affine, matrices[operation], how, fillcolor=fill)
    if operation == "rotate":
        return image.rotate(value, how, fillcolor=fill)
    if operation == "solarize_add":
        levels = [min(255, level + int(value)) if level < 128 else level for level in range(256)]
        return image.point(levels * len(image.getbands()))
    simple: Any = {
        "identity": lambda: image,
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "posterize": lambda: ImageOps.posterize(image, int(value)),
        "solarize": lambda: ImageOps.solarize(image, value),
    }
    return simple[operation]()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", ["trivial_augment_wide", "rand_augment", "rand-m7-mstd0.5-inc1"])
def test_each_row_comes_out_as_pillow_makes_it(
    name: str, interpolation: str, channels: int
) -> None:
    images = crops(96, channels, SIZE, SIZE)
    before = images.clone()
    config = PolicyConfig(name, fill=(9,) * channels)
    layers = draw_policy(config, np.arange(96), 11, SIZE, SIZE)
    fill = fill_levels(config.fill, channels, CPU)
    results = apply_layers(images, layers, bilinear=interpolation == "bilinear", fill=fill)
    assert torch.equal(images, before)
    assert results.is_contiguous(memory_format=torch.channels_last)
    how = Image.Resampling[interpolation.upper()]
    for row, (image, result) in enumerate(zip(images, results, strict=True)):
        expected = to_pillow(image)
        for layer in layers:
            operation, value = OPERATIONS[layer.operations[row]], float(layer.values[row])
            expected = by_pillow(expected, operation, value, how, config.fill[:channels])
        assert torch.equal(result, from_pillow(expected)), [
            (OPERATIONS[layer.operations[row]], layer.values[row]) for layer in layers
        ]
    used = {OPERATIONS[number] for layer in layers for number in layer.operations}
    assert len(used) >= 13, "so many rows meet nearly all operations"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_micro_batch_of_one_operation_and_one_row_are_no_special_case(operation: str) -> None:
    images = crops(2, 3, SIZE, SIZE)
    number = OPERATIONS.index(operation)
    two = apply_layers(
        images,
        [Layer(np.array([number, number]), np.array([1.0, 2.0]))],
        bilinear=False,
        fill=torch.zeros(3, dtype=torch.uint8),
    )
    alone = apply_layers(
        images[1:],
        [Layer(np.array([number]), np.array([2.0]))],
        bilinear=False,
        fill=torch.zeros(3, dtype=torch.uint8),
    )
    assert torch.equal(two[1:], alone)
    expected = by_pillow(to_pillow(images[1]), operation, 2.0, Image.Resampling.NEAREST, (0, 0, 0))
    assert torch.equal(alone[0], from_pillow(expected))


def test_one_level_fills_all_channels() -> None:
    assert fill_levels((7,), 3, CPU).tolist() == [7, 7, 7]
    assert fill_levels((1, 2, 3), 3, CPU).tolist() == [1, 2, 3]
