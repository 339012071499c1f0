"""Mixup and cutmix: each image of a micro-batch mixed with another one of it, and so the labels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from resscale.data.permutation import uniforms
from resscale.errors import UserInputError
from resscale.training.losses import Targets

_NUM_UNIFORMS = 7


@dataclass(frozen=True)
class MixingConfig:
    """Mixing of images within a micro-batch; off unless one of the alphas is above 0.

    Args:
        mixup_alpha: of the Beta(alpha, alpha) that mixup draws the share from (Zhang et al. 2017).
        cutmix_alpha: the same for cutmix (Yun et al. 2019).
        switch_probability: where both are on, the chance that a micro-batch is cut and not blended.
        probability: chance that a micro-batch is mixed at all.

    Raises:
        UserInputError: a number out of its range.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    switch_probability: float = 0.5
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserInputError(
                    f"model.mixing.{name}={value} must not be below 0; 0 turns it off."
                )
        for name in ("switch_probability", "probability"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserInputError(f"model.mixing.{name}={value} must be from 0 to 1.")

    @property
    def is_on(self) -> bool:
        """Whether anything is ever mixed."""
        return self.probability > 0 and max(self.mixup_alpha, self.cutmix_alpha) > 0


class Box(NamedTuple):
    """A part of an image, in pixels: lines `top` to `bottom`, columns `left` to `right`."""

    top: int
    bottom: int
    left: int
    right: int


class Mix(NamedTuple):
    """How a micro-batch is mixed.

    Args:
        share: of each image that stays, 0 to 1.
        offset: row i is mixed with row i - offset.
        box: cutmix: what comes from the other image; None: mixup.
    """

    share: float
    offset: int
    box: Box | None


def draw_mix(
    config: MixingConfig, first: int, key: int, rows: int, height: int, width: int
) -> Mix | None:
    """Draw how a micro-batch is mixed, on the host; None: not at all.

    Args:
        config: which mixing.
        first: augmentation id of the micro-batch's first row.
        key: names seed and epoch.
        rows: images of the micro-batch; a single one is not mixed.
        height: of the images, in pixels.
        width: of the images, in pixels.
    """
    if rows < 2 or not config.is_on:
        return None
    draws: list[float] = uniforms(np.array([first]), _NUM_UNIFORMS, key)[0].tolist()
    if draws[0] >= config.probability:
        return None
    # A pairing of its own for each micro-batch: repeats of one image may lie next to each other.
    offset = 1 + int(draws[1] * (rows - 1))
    cut = config.cutmix_alpha > 0
    if cut and config.mixup_alpha > 0:
        cut = draws[2] < config.switch_probability
    alpha = config.cutmix_alpha if cut else config.mixup_alpha
    share = symmetric_beta(alpha, draws[3], draws[4])
    if not cut:
        return Mix(share, offset, None)
    box = cut_box(share, int(draws[5] * height), int(draws[6] * width), height, width)
    area = (box.bottom - box.top) * (box.right - box.left)
    return Mix(1.0 - area / (height * width), offset, box)


def cut_box(share: float, centre_y: int, centre_x: int, height: int, width: int) -> Box:
    """Return cutmix's box of the image's shape and `1 - share` of its area, cut off at the edges.

    The arithmetic is that of Yun et al. 2019, appendix A, in whole pixels.

    Args:
        share: of the image that stays, before the box is cut off.
        centre_y: of the box, in pixels from the top.
        centre_x: of the box, in pixels from the left.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    ratio = math.sqrt(1.0 - share)
    half_height, half_width = int(height * ratio) // 2, int(width * ratio) // 2
    return Box(
        max(centre_y - half_height, 0),
        min(centre_y + half_height, height),
        max(centre_x - half_width, 0),
        min(centre_x + half_width, width),
    )


def symmetric_beta(alpha: float, first: float, second: float) -> float:
    """Return a draw of Beta(alpha, alpha) from two uniforms in [0, 1).

    Bailey 1994's polar method gives Student's t with 2 alpha degrees of freedom, and
    1/2 + t / (2 sqrt(2 alpha + t²)) is the beta (Devroye 1996): nothing is rejected, so a draw
    takes two uniforms for any alpha.
    """
    cosine = math.cos(2 * math.pi * second)
    # t² / (2 alpha); the exponent is bounded for alphas near 0, whose draws are 0 or 1.
    spread = math.expm1(min(-math.log1p(-first) / alpha, 700.0)) * cosine * cosine
    return 0.5 + math.copysign(0.5, cosine) * math.sqrt(spread / (1.0 + spread))


def mix(images: Tensor, label: Tensor, drawn: Mix) -> Targets:
    """Mix a micro-batch in place; return its targets.

    Mixup: `share × image + (1 - share) × other` (Zhang et al. 2017, section 2). Cutmix: the box of
    the other image at its own place (Yun et al. 2019, section 3.1).

    Args:
        images: float (N, C, H, W), normalised.
        label: int64 (N,).
        drawn: how.
    """
    if drawn.box is None:
        images.lerp_(_rolled(images, drawn.offset), 1.0 - drawn.share)
    else:
        top, bottom, left, right = drawn.box
        inside = images[:, :, top:bottom, left:right]
        inside.copy_(_rolled(inside, drawn.offset))
    return Targets(label, _rolled(label, drawn.offset), drawn.share)


def _rolled(rows: Tensor, offset: int) -> Tensor:
    """Return the rows moved on by `offset`, in the memory layout that they have."""
    return torch.cat((rows[-offset:], rows[:-offset]))
