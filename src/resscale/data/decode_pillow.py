"""Decoding with Pillow: any format, and the pixels that all other decoders are held against."""

from __future__ import annotations

import io

from PIL import Image, ImageFile, UnidentifiedImageError

from resscale.data.augment import Crop, Uniforms
from resscale.data.decode import DecodeError, Pixels
from resscale.data.decode_region import region_of, resize_with_pillow

# A JPEG that ends early is a bad sample to count, not one to fill up with grey.
ImageFile.LOAD_TRUNCATED_IMAGES = False
_MODES = {1: "L", 3: "RGB"}


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
        except MemoryError:  # says nothing of the file
            raise
        # Pillow's plugins raise many kinds (SyntaxError, struct.error ...) on damaged files.
        except Exception as error:
            raise DecodeError(f"{type(error).__name__}: {error}") from error
        box = crop.box(image.width, image.height, uniform)
        resize_with_pillow(image, region_of(box, image.width, image.height, crop.size), out)
