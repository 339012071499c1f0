"""What all decoders have in common: from a compressed image to the pixels of one region of it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from resscale.data.augment import Crop, Uniforms

Pixels = npt.NDArray[np.uint8]

# Twice Pillow's default for a warning, past which Pillow refuses an image as a decompression bomb.
MAX_PIXELS = 178_956_970
JPEG_START = b"\xff\xd8\xff"


class Decoder(Protocol):
    """Decodes the region that `crop` chooses into `out`.

    A decoder is cheap to build, can be pickled, may be used by several threads at once, and gives
    the same pixels in any thread or process.
    """

    def decode(self, data: bytes, crop: Crop, uniform: Uniforms, out: Pixels) -> None:
        """Fill `out`, uint8 (size, size, channels), C-contiguous.

        Parts of the region that lie outside the image become black. EXIF orientation is not
        applied.

        Raises:
            DecodeError: the bytes are no image that can be decoded whole.
        """
        ...


class DecodeError(Exception):
    """One image cannot be decoded; the caller decides whether training goes on."""
