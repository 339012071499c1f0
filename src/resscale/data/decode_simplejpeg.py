"""Decoding with simplejpeg (libjpeg-turbo in a wheel of half a megabyte), and torch's resize."""

from __future__ import annotations

import importlib.util

from resscale.data.augment import Crop, Uniforms
from resscale.data.decode import JPEG_START, MAX_PIXELS, Pixels
from resscale.data.decode_pillow import PillowDecoder
from resscale.data.decode_region import region_of, resize_pixels

_SPACES = {1: ("Gray",), 3: ("Gray", "YCbCr", "RGB")}
_TARGETS = {1: "GRAY", 3: "RGB"}


class SimpleJpegDecoder:
    """Decodes ordinary JPEGs with simplejpeg; all else, and all that looks damaged, is Pillow's.

    So it knows every format that Pillow knows, and judges damage as Pillow does.

    Args:
        channels: 3 gives RGB, 1 gives luminance.
    """

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels
        self._pillow = PillowDecoder(channels)

    def decode(self, data: bytes, crop: Crop, uniform: Uniforms, out: Pixels) -> None:
        """Fill `out`, uint8 (size, size, channels); see `Decoder`."""
        pixels = self._whole_image(data)
        if pixels is None:
            self._pillow.decode(data, crop, uniform, out)
            return
        height, width = pixels.shape[:2]
        region = region_of(crop.box(width, height, uniform), width, height, crop.size)
        resize_pixels(pixels, 0, 0, region, out)

    def _whole_image(self, data: bytes) -> Pixels | None:
        """Return uint8 (height, width, channels); None where Pillow should look at it."""
        if not data.startswith(JPEG_START):
            return None
        from simplejpeg import (  # type: ignore[import-untyped, unused-ignore]
            decode_jpeg,
            decode_jpeg_header,
        )

        try:
            height, width, space, _ = decode_jpeg_header(data)
            if space not in _SPACES[self.channels] or height * width > MAX_PIXELS:
                return None
            pixels: Pixels = decode_jpeg(data, _TARGETS[self.channels])
        except ValueError:  # also whatever libjpeg would only warn of
            return None
        return pixels


def why_not() -> str | None:
    """Return why simplejpeg cannot be used here, None where it can."""
    if importlib.util.find_spec("simplejpeg") is None:
        return "simplejpeg is not installed; pip install simplejpeg"
    return None
