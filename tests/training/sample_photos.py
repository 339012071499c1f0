"""Crops of the two photographs that come with scikit-learn, as batches and as Pillow's images."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor


@functools.cache
def _photos() -> list[npt.NDArray[np.uint8]]:
    # Found without importing scikit-learn, which takes seconds.
    package = importlib.util.find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "datasets" / "images"
    return [np.array(Image.open(folder / name)) for name in ("china.jpg", "flower.jpg")]


def crops(count: int, channels: int = 3, height: int = 53, width: int = 70) -> Tensor:
    """Different parts of a temple and a flower: uint8 (count, C, H, W), channels_last."""
    made = []
    for number in range(count):
        photo = _photos()[number % 2]
        top, left = 37 * number % (427 - height), 59 * number % (640 - width)
        made.append(photo[top : top + height, left : left + width, 3 - channels :])
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def to_pillow(image: Tensor) -> Image.Image:
    """Return an image (C, H, W) as Pillow's, mode L or RGB."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def from_pillow(image: Image.Image) -> Tensor:
    """Return Pillow's image as uint8 (C, H, W)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
