"""Pillow's affine transform on whole batches of uint8 images: equal to the byte.

A matrix (a, b, c, d, e, f) says where a pixel comes from: the point (x, y) of the result is that at
`(a x + b y + c, d x + e y + f)` of the source, in pixels from the upper left corner, pixels having
their centres at halves (Pillow's `Image.transform` with AFFINE). Matrices are made on the host.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
_ONE = 65536  # in fixed point of 16 bits


def shear_x_matrices(amounts: Floats) -> Floats:
    """Return matrices (k, 6) that take `x + amount × y`, for amounts (k,)."""
    return _matrices(len(amounts), b=amounts)


def shear_y_matrices(amounts: Floats) -> Floats:
    """Return matrices (k, 6) that take `y + amount × x`."""
    return _matrices(len(amounts), d=amounts)


def shift_x_matrices(pixels: Floats) -> Floats:
    """Return matrices (k, 6) that take `x + pixels`: the picture moves to the left."""
    return _matrices(len(pixels), c=pixels)


def shift_y_matrices(pixels: Floats) -> Floats:
    """Return matrices (k, 6) that take `y + pixels`: the picture moves up."""
    return _matrices(len(pixels), f=pixels)


def rotation_matrices(degrees: Floats, height: int, width: int) -> Floats:
    """Return matrices (k, 6) that turn the picture counterclockwise about its centre.

    Args:
        degrees: (k,).
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    radians = [-math.radians(angle % 360.0) for angle in degrees.tolist()]
    # Rounded as Pillow's are, so that quarter turns are exact. Not by numpy, whose cosines and
    # roundings may differ from the C library's in the last bit.
    cosine = np.array([round(math.cos(angle), 15) for angle in radians])
    sine = np.array([round(math.sin(angle), 15) for angle in radians])
    x, y = width / 2, height / 2
    return _matrices(
        len(degrees),
        a=cosine,
        b=sine,
        c=cosine * -x + sine * -y + x,
        d=-sine,
        e=cosine,
        f=-sine * -x + cosine * -y + y,
    )


def fixed_point(matrices: Floats) -> Floats:
    """Return matrices for `affine_nearest`: (k, 6) whole numbers, 16 bits of them behind the point.

    They start at the centre of the first pixel. A shift is one of whole pixels there.
    """
    a, b, c, d, e, f = matrices.T
    starts_x, starts_y = c + a * 0.5 + b * 0.5, f + d * 0.5 + e * 0.5
    # Pillow shifts without the fixed point, which could round to the next pixel.
    shifts = (a == 1) & (b == 0) & (d == 0) & (e == 1)
    starts_x = np.where(shifts, np.floor(starts_x), starts_x)
    starts_y = np.where(shifts, np.floor(starts_y), starts_y)
    return np.floor(np.stack((a, b, starts_x, d, e, starts_y), axis=1) * _ONE + 0.5)


def affine_nearest(images: Tensor, fixed: Tensor, fill: Tensor) -> Tensor:
    """Take each pixel from the source pixel it falls into; `fill` where there is none.

    Args:
        images: uint8 (n, C, H, W) of fewer than 32,768 pixels per side.
        fixed: of `fixed_point`, float64 (n, 6).
        fill: uint8 (C,).
    """
    rows, _, height, width = images.shape
    a, b, c, d, e, f = fixed.to(torch.int32).view(rows, 6, 1, 1).unbind(1)
    y = torch.arange(height, device=images.device, dtype=torch.int32)[:, None]
    x = torch.arange(width, device=images.device, dtype=torch.int32)
    source_x, source_y = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (source_x >= 0) & (source_x < width) & (source_y >= 0) & (source_y < height)
    places = torch.where(inside, source_y * width + source_x, height * width)
    return _take(_with_fill(images, fill), places)


def affine_bilinear(images: Tensor, matrices: Tensor, fill: Tensor) -> Tensor:
    """Interpolate between the four pixels around each point, in float64 as Pillow does.

    Args:
        images: uint8 (n, C, H, W).
        matrices: float64 (n, 6).
        fill: uint8 (C,), where the point lies outside of the source.
    """
    rows, _, height, width = images.shape
    a, b, c, d, e, f = matrices.view(rows, 6, 1, 1).unbind(1)
    y = torch.arange(height, device=images.device, dtype=torch.float64)[:, None] + 0.5
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5
    at_x, at_y = a * x + b * y + c, d * x + e * y + f
    inside = (at_x >= 0) & (at_x < width) & (at_y >= 0) & (at_y < height)
    left, top = (at_x - 0.5).floor(), (at_y - 0.5).floor()
    right_share, lower_share = at_x - 0.5 - left, at_y - 0.5 - top
    columns = [(left + step).clamp(0, width - 1).int() for step in (0, 1)]
    lines = [(top + step).clamp(0, height - 1).int() * width for step in (0, 1)]
    source = _with_fill(images, fill)

    def at(line: Tensor, column: Tensor) -> Tensor:
        places = torch.where(inside, line + column, height * width)
        return _take(source, places).double()

    blended = []
    for line in lines:
        here, there = (at(line, column) for column in columns)
        blended.append(there.sub_(here).mul_(right_share[:, None]).add_(here))
    upper, lower = blended
    return lower.sub_(upper).mul_(lower_share[:, None]).add_(upper).to(torch.uint8)


def _matrices(count: int, **entries: Floats) -> Floats:
    """Return matrices (count, 6) of the identity with some entries, a to f, in its place."""
    matrices = np.tile(np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), (count, 1))
    for name, values in entries.items():
        matrices[:, "abcdef".index(name)] = values
    return matrices


def _with_fill(images: Tensor, fill: Tensor) -> Tensor:
    """Return the pixels of each channel, and behind them its `fill`: uint8 (n, C, H × W + 1)."""
    rows, channels = images.shape[:2]
    pixels = images.reshape(rows, channels, -1)
    return torch.cat((pixels, fill.view(1, -1, 1).expand(rows, -1, 1)), dim=2)


def _take(source: Tensor, places: Tensor) -> Tensor:
    """Return images (n, C, H, W) of pixels (n, C, pixels) at the places int32 (n, H, W)."""
    rows, channels = source.shape[:2]
    index = places.long().view(rows, 1, -1).expand(-1, channels, -1)
    return source.gather(2, index).view(rows, channels, *places.shape[1:])
