"""Decoding with our own extension of libjpeg-turbo: the region alone, its planes resized."""

from __future__ import annotations

import functools
from pathlib import Path

from resscale import _native
from resscale.data.augment import Crop, Cut, Uniforms
from resscale.data.decode import DecodeError, Pixels
from resscale.data.decode_pillow import PillowDecoder

_REMEDY = (
    "apt install gcc libjpeg-dev python3-dev, then install resscale again with pip's "
    "--force-reinstall --no-deps --no-cache-dir"
)


class NativeDecoder:
    """Decodes the region of an ordinary JPEG; all else, and what looks damaged, is Pillow's.

    So it knows every format that Pillow knows, and judges damage as Pillow does. Damage below the
    region is not seen, but for a file that was cut off. The interpreter's lock is not held while a
    JPEG is decoded.

    Args:
        channels: 3 gives RGB, 1 gives luminance.
    """

    def __init__(self, channels: int = 3) -> None:
        self.channels = channels
        self._pillow = PillowDecoder(channels)

    def decode(self, data: bytes, crop: Crop, uniform: Uniforms, out: Pixels) -> None:
        """Fill `out`, uint8 (size, size, channels); see `Decoder`."""
        if not self._decode_region(data, crop, uniform, out):
            self._pillow.decode(data, crop, uniform, out)

    def _decode_region(self, data: bytes, crop: Crop, uniform: Uniforms, out: Pixels) -> bool:
        """Fill `out`; return False where Pillow should look at the image."""
        from resscale._native import jpeg

        try:
            header = jpeg.read_header(data)
            if isinstance(header, str):
                return False
            box = crop.box(*header, uniform)
            return jpeg.decode(data, *box, isinstance(box, Cut), out) is None
        except jpeg.JpegError as error:
            raise DecodeError(str(error)) from error


@functools.cache
def why_not() -> str | None:
    """Return why the native decoder cannot be used here, None where it can."""
    try:
        from resscale._native import jpeg  # noqa: F401
    except ImportError as error:
        note = Path(_native.__path__[0]) / "not_built.txt"
        if note.is_file():
            return f"the native decoder was not built: {note.read_text().strip()}"
        return f"the native decoder is not there ({error}); {_REMEDY}"
    return None


def is_available() -> bool:
    """Return whether the native decoder can be used here."""
    return why_not() is None
