"""From a compressed image to the uint8 pixels of one region of it."""

from __future__ import annotations

import io
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from resscale.data.augment import Box, Crop, Uniforms

Pixels = npt.NDArray[np.uint8]

# A JPEG that ends early is a bad sample to count, not one to fill up with grey.
ImageFile.LOAD_TRUNCATED_IMAGES = False
_MODES = {1: "L", 3: "RGB"}


class Decoder(Protocol):
    """Decodes the region that `crop` chooses into `out`."""

    def decode(self, data: bytes, crop: Crop, uniform: Uniforms, out: Pixels) -> None:
        """Fill `out`, uint8 (size, size, channels).

        Raises:
            DecodeError: the bytes are no image that can be decoded whole.
        """
        ...


class DecodeError(Exception):
    """One image cannot be decoded; the caller decides whether training goes on."""


class PillowDecoder:
    """Decodes with Pillow: any format, antialiased bilinear, the pixels of the PIL reference.

    Args:
        channels: 3 gives RGB, 1 gives luminance.
    """

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels

    def decode(self, data: bytes, crop: Crop, uniform: Uniforms, out: Pixels) -> None:
        """Fill `out`, uint8 (size, size, channels); see `Decoder`."""
        try:
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()
                image = opened.convert(_MODES[self.channels])
        except UnidentifiedImageError as error:
            raise DecodeError("not an image that Pillow can read") from error
        # Pillow's plugins raise many kinds (SyntaxError, struct.error ...) on damaged files.
        except Exception as error:
            raise DecodeError(f"{type(error).__name__}: {error}") from error
        box = crop.box(image.width, image.height, uniform)
        _resample(image, box, out)


def _resample(image: Image.Image, box: Box, out: Pixels) -> None:
    size = out.shape[0]
    inside = Box(
        max(box.left, 0.0),
        max(box.top, 0.0),
        min(box.right, float(image.width)),
        min(box.bottom, float(image.height)),
    )
    x, y = size / (box.right - box.left), size / (box.bottom - box.top)
    left, top = round((inside.left - box.left) * x), round((inside.top - box.top) * y)
    right, bottom = round((inside.right - box.left) * x), round((inside.bottom - box.top) * y)
    if (left, top, right, bottom) != (0, 0, size, size):
        out[:] = 0
    if right > left and bottom > top:
        small = image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=inside)
        pixels = np.asarray(small)
        out[top:bottom, left:right] = pixels if pixels.ndim == 3 else pixels[:, :, None]
