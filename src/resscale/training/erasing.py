"""Random erasing: a rectangle of some images replaced by 0 or by noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from resscale.data.permutation import Int64, uniforms
from resscale.errors import UserInputError, nearest
from resscale.training.to_device import select_rows, to_device

Value = Literal["zero", "noise"]
_VALUES: tuple[str, ...] = get_args(Value)
_ATTEMPTS = 10


@dataclass(frozen=True)
class ErasingConfig:
    """Random erasing of normalised images (Zhong et al. 2017, algorithm 1); off at probability 0.

    Args:
        probability: chance that an image loses a rectangle.
        area: range of the rectangle's share of the image's area.
        aspect: range of the rectangle's height / width, drawn log-uniformly.
        value: "zero", the mean colour, or "noise", a standard normal draw for each value.

    Raises:
        UserInputError: a number out of its range.
    """

    probability: float = 0.0
    area: tuple[float, float] = (0.02, 0.33)
    aspect: tuple[float, float] = (0.3, 3.3)
    value: Value = "zero"

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserInputError(
                f"model.erasing.probability={self.probability} must be from 0 to 1."
            )
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserInputError(
                f"model.erasing.area={list(self.area)} must be two shares of the image's area, "
                f"above 0, up to 1, the smaller first."
            )
        if not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise UserInputError(
                f"model.erasing.aspect={list(self.aspect)} must be two ratios of height to width "
                f"above 0, the smaller first."
            )
        if self.value not in _VALUES:
            raise UserInputError(
                f"model.erasing.value={self.value} must be one of {', '.join(_VALUES)}."
                f"{nearest(self.value, _VALUES)}"
            )


class Erasures(NamedTuple):
    """Which rows lose what: rows int64 (m,), boxes int64 (m, 4) of top, bottom, left, right."""

    rows: Int64
    boxes: Int64


def draw_erasures(config: ErasingConfig, ids: Int64, key: int, height: int, width: int) -> Erasures:
    """Draw the rectangles of a micro-batch, on the host.

    Of ten rectangles the first counts that is smaller than the image both ways; without any the
    image stays whole.

    Args:
        config: chance, areas and aspects.
        ids: augmentation ids of the rows, int64 (N,).
        key: names seed and epoch.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    draws = uniforms(ids, 3 + 2 * _ATTEMPTS, key)
    low, high = (math.log(ratio) for ratio in config.aspect)
    areas = config.area[0] + (config.area[1] - config.area[0]) * draws[:, 3::2]
    aspects = np.exp(low + (high - low) * draws[:, 4::2])
    heights = np.rint(np.sqrt(height * width * areas * aspects)).astype(np.int64)
    widths = np.rint(np.sqrt(height * width * areas / aspects)).astype(np.int64)
    fits = (heights < height) & (widths < width)
    rows = np.flatnonzero((draws[:, 0] < config.probability) & fits.any(axis=1))
    attempt = fits[rows].argmax(axis=1)
    high_px, wide_px = heights[rows, attempt], widths[rows, attempt]
    top = (draws[rows, 1] * (height - high_px + 1)).astype(np.int64)
    left = (draws[rows, 2] * (width - wide_px + 1)).astype(np.int64)
    return Erasures(rows, np.stack((top, top + high_px, left, left + wide_px), axis=1))


def erase(images: Tensor, erasures: Erasures, value: Value, noise_seed: int) -> Tensor:
    """Replace the rectangles, in place, by a few operations on the whole batch; return the images.

    Args:
        images: float (N, C, H, W), normalised.
        erasures: which.
        value: by what.
        noise_seed: names the noise, 63 bits.
    """
    if not len(erasures.rows):
        return images
    device = images.device
    packed = to_device(np.concatenate((erasures.rows[:, None], erasures.boxes), axis=1), device)
    rows, (top, bottom, left, right) = packed[:, 0], packed[:, 1:, None].unbind(1)
    y = torch.arange(images.shape[2], device=device)
    x = torch.arange(images.shape[3], device=device)
    inside_y, inside_x = (y >= top) & (y < bottom), (x >= left) & (x < right)
    mask = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
    chosen = select_rows(images, rows)
    if value == "zero":
        chosen = chosen.masked_fill(mask, 0.0)
    else:
        generator = torch.Generator(device).manual_seed(noise_seed)
        noise = torch.randn(chosen.shape, generator=generator, device=device, dtype=chosen.dtype)
        chosen = torch.where(mask, noise, chosen)
    return images.index_copy_(0, rows, chosen)
