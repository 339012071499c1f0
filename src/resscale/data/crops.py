"""Crops as the user names them."""

from __future__ import annotations

from typing import Literal

from resscale.data.augment import CenterCrop, Crop, PadCrop, RandomResizedCrop
from resscale.errors import UserInputError

TrainCrop = Literal["random_resized", "pad", "center"]
RATIO = (3 / 4, 4 / 3)
"""Width over height of random regions (Szegedy et al. 2014, section 6)."""


def build_train_crop(
    kind: TrainCrop,
    size: int,
    scale: tuple[float, float],
    pad: int,
    ratio: tuple[float, float] = RATIO,
) -> Crop:
    """Return the crop of training images.

    Args:
        kind: its name.
        size: side, pixels.
        scale: share of the image's area that a "random_resized" crop covers.
        pad: largest shift of a "pad" crop, pixels.
        ratio: width over height of a "random_resized" crop's region.

    Raises:
        UserInputError: a range that is none.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UserInputError(
            f"data.scale={list(scale)} must be two shares of an image's area, above 0 and up to 1, "
            f"the smaller first."
        )
    if not 0 < ratio[0] <= ratio[1]:
        raise UserInputError(
            f"data.ratio={list(ratio)} must be two ratios of width to height above 0, the smaller "
            f"first."
        )
    if pad < 0:
        raise UserInputError(f"data.pad={pad} must be 0 pixels or more.")
    if kind == "random_resized":
        return RandomResizedCrop(size, (scale[0], scale[1]), (ratio[0], ratio[1]))
    return PadCrop(size, pad) if kind == "pad" else CenterCrop(size, size)


def build_eval_crop(kind: TrainCrop, size: int, resize: int | None) -> CenterCrop:
    """Return the crop of evaluation images.

    Args:
        kind: of the training crop.
        size: side, pixels.
        resize: shorter side before the crop, pixels. None: size × 256 / 224 where training crops
            are "random_resized", else size.
    """
    default = round(size * 256 / 224) if kind == "random_resized" else size
    return CenterCrop(size, resize or default)
