"""Operations of a policy on a micro-batch: each image its own, images of one operation together."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from resscale.data.permutation import Int64
from resscale.training import image_geometry, image_ops
from resscale.training.to_device import select_rows, to_device

Floats = npt.NDArray[np.float64]

_COLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": image_ops.brightness,
    "color": image_ops.color,
    "contrast": image_ops.contrast,
    "sharpness": image_ops.sharpness,
    "posterize": image_ops.posterize,
    "solarize": image_ops.solarize,
    "solarize_add": image_ops.solarize_add,
    "auto_contrast": image_ops.auto_contrast,
    "equalize": image_ops.equalize,
    "invert": image_ops.invert,
}
_MATRICES: dict[str, Callable[[Floats, int, int], Floats]] = {
    "shear_x": lambda amounts, height, width: image_geometry.shear_x_matrices(amounts),
    "shear_y": lambda amounts, height, width: image_geometry.shear_y_matrices(amounts),
    "translate_x": lambda pixels, height, width: image_geometry.shift_x_matrices(pixels),
    "translate_y": lambda pixels, height, width: image_geometry.shift_y_matrices(pixels),
    "rotate": image_geometry.rotation_matrices,
}
# Geometry last, one behind the other: all of it is one call.
OPERATIONS = ("identity", *_COLOUR, *_MATRICES)
_FIRST_GEOMETRIC = 1 + len(_COLOUR)


class Layer(NamedTuple):
    """One operation for each image.

    Args:
        operations: numbers in `OPERATIONS`, int64 (N,).
        values: the parameter of each: factor, bits, threshold, levels, amount, pixels or degrees;
            float64 (N,).
    """

    operations: Int64
    values: Floats


def apply_layers(images: Tensor, layers: list[Layer], *, bilinear: bool, fill: Tensor) -> Tensor:
    """Return the images behind all layers: uint8 (N, C, H, W).

    Args:
        images: uint8 (N, C, H, W) of 1 or 3 channels; they are not changed.
        layers: what happens to each, in order.
        bilinear: interpolate where geometry takes pixels between others; else the nearest.
        fill: uint8 (C,) on the images' device, where there is no image.
    """
    for layer in layers:
        images = _apply(images, layer, bilinear, fill)
    return images


def _apply(images: Tensor, layer: Layer, bilinear: bool, fill: Tensor) -> Tensor:
    """Sort the rows by their operation, call each on its part, and put the rows back."""
    height, width = images.shape[-2:]
    order = np.argsort(layer.operations, kind="stable")
    sorted_operations, values = layer.operations[order], layer.values[order]
    first_geometric = int(np.searchsorted(sorted_operations, _FIRST_GEOMETRIC))
    parameters = np.zeros((len(order), 6))
    parameters[:, 0] = values
    parts = [
        (OPERATIONS[number], slice(*np.searchsorted(sorted_operations, (number, number + 1))))
        for number in np.unique(sorted_operations).tolist()
    ]
    for name, part in parts:
        if name in _MATRICES:
            parameters[part] = _MATRICES[name](values[part], height, width)
    geometric = slice(first_geometric, len(order))
    if not bilinear:
        parameters[geometric] = image_geometry.fixed_point(parameters[geometric])
    # One copy for both orders, one for the parameters, whatever was drawn.
    orders = to_device(np.stack((order, np.argsort(order))), images.device)
    given = to_device(parameters, images.device)
    grouped = select_rows(images, orders[0])
    for name, part in parts:
        if name in _COLOUR:
            grouped[part] = _COLOUR[name](grouped[part], given[part, 0])
    if first_geometric < len(order):
        transform = image_geometry.affine_bilinear if bilinear else image_geometry.affine_nearest
        grouped[geometric] = transform(grouped[geometric], given[geometric], fill)
    return select_rows(grouped, orders[1])


def fill_levels(levels: tuple[int, ...], channels: int, device: torch.device) -> Tensor:
    """Return the level of each channel, uint8 (C,).

    Args:
        levels: one for all channels, or one for each.
        channels: C.
        device: of the images.
    """
    each = levels * channels if len(levels) == 1 else levels
    return to_device(np.array(each, dtype=np.uint8), device)
