"""Crops as the user names them."""

from __future__ import annotations

from typing import Literal

from resscale.data.augment import CenterCrop, Crop, PadCrop, RandomResizedCrop

TrainCrop = Literal["random_resized", "pad", "center"]


def build_train_crop(kind: TrainCrop, size: int, scale: tuple[float, float], pad: int) -> Crop:
    """Return the crop of training images.

    Args:
        kind: its name.
        size: side, pixels.
        scale: share of the image's area that a "random_resized" crop covers.
        pad: largest shift of a "pad" crop, pixels.
    """
    if kind == "random_resized":
        return RandomResizedCrop(size, (scale[0], scale[1]))
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
