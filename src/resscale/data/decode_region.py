"""Where the pixels of a region come from in the image, and where they go in the sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from resscale.data.augment import Box, Cut
from resscale.data.decode import Pixels


@dataclass(frozen=True)
class Region:
    """The part of a box that lies in the image, and its place in the sample.

    Args:
        source: that part, in pixels of the image; a `Cut` where the box is one.
        left: first column of the sample that it fills.
        top: first row.
        right: column behind the last.
        bottom: row behind the last.
    """

    source: Box
    left: int
    top: int
    right: int
    bottom: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing of the image is to be seen."""
        return self.right <= self.left or self.bottom <= self.top

    def fills(self, size: int) -> bool:
        """Whether no part of a sample of `size` × `size` stays black."""
        return (self.left, self.top, self.right, self.bottom) == (0, 0, size, size)


def region_of(box: Box, width: int, height: int, size: int) -> Region:
    """Return the region of `box` in an image of `width` × `height`, for `size` × `size` pixels."""
    source = Box(
        max(box.left, 0.0),
        max(box.top, 0.0),
        min(box.right, float(width)),
        min(box.bottom, float(height)),
    )
    # Divided first: `size` over the side of a very narrow box would be infinite.
    wide, high = box.right - box.left, box.bottom - box.top
    return Region(
        Cut(*source) if isinstance(box, Cut) else source,
        round((source.left - box.left) / wide * size),
        round((source.top - box.top) / high * size),
        round((source.right - box.left) / wide * size),
        round((source.bottom - box.top) / high * size),
    )


def pixels_needed(region: Region, width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, right, bottom) of the whole pixels that the resize of a region reads."""
    box = region.source
    if isinstance(box, Cut):
        return int(box.left), int(box.top), int(box.right), int(box.bottom)
    x = (box.right - box.left) / (region.right - region.left)
    y = (box.bottom - box.top) / (region.bottom - region.top)
    # The filter reaches one result pixel, and one source pixel at least, to each side.
    reach_x, reach_y = max(x, 1.0) + 1, max(y, 1.0) + 1
    return (
        max(0, math.floor(box.left - reach_x)),
        max(0, math.floor(box.top - reach_y)),
        min(width, math.ceil(box.right + reach_x)),
        min(height, math.ceil(box.bottom + reach_y)),
    )


def resize_with_pillow(image: Image.Image, region: Region, out: Pixels) -> None:
    """Resize a region of a Pillow image into its place in `out`; the rest becomes black."""
    if not region.fills(out.shape[0]):
        out[:] = 0
    if region.is_empty:
        return
    shape = (region.right - region.left, region.bottom - region.top)
    if isinstance(region.source, Cut):
        left, top, right, bottom = (int(edge) for edge in region.source)
        small = image.crop((left, top, right, bottom)).resize(shape, Image.Resampling.BILINEAR)
    else:
        # Of a larger image Pillow may resize the columns first, and round otherwise.
        left, top, right, bottom = pixels_needed(region, *image.size)
        box = region.source
        moved = (box.left - left, box.top - top, box.right - left, box.bottom - top)
        part = image.crop((left, top, right, bottom))
        small = part.resize(shape, Image.Resampling.BILINEAR, box=moved)
    pixels = np.asarray(small)
    out[region.top : region.bottom, region.left : region.right] = (
        pixels if pixels.ndim == 3 else pixels[:, :, None]
    )


def resize_pixels(pixels: Pixels, left: int, top: int, region: Region, out: Pixels) -> None:
    """Resize a region of decoded pixels into its place in `out`; the rest becomes black.

    A cut that fills the sample, nearly all of training, is resized by torch: the same filter as
    Pillow's in 8 bits, about three times as fast. Anything else is Pillow's.

    Args:
        pixels: uint8 (height, width, channels), a part of the image that holds all that is needed.
        left: column of the image at which that part begins.
        top: row of the image at which it begins.
        region: in pixels of the image.
        out: uint8 (size, size, channels), C-contiguous.
    """
    box = region.source
    if isinstance(box, Cut) and region.fills(out.shape[0]):
        rows, columns = (
            slice(int(box.top) - top, int(box.bottom) - top),
            slice(int(box.left) - left, int(box.right) - left),
        )
        _resize_with_torch(pixels[rows, columns], out)
        return
    moved = Box(box.left - left, box.top - top, box.right - left, box.bottom - top)
    source = Cut(*moved) if isinstance(box, Cut) else moved
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    resize_with_pillow(
        image, Region(source, region.left, region.top, region.right, region.bottom), out
    )


def _resize_with_torch(pixels: Pixels, out: Pixels) -> None:
    if pixels.shape == out.shape:
        out[:] = pixels
        return
    # Into `out` itself: no other memory is touched. Its strides are those of channels_last.
    torch.ops.aten._upsample_bilinear2d_aa.out(
        _channels_first(pixels), list(out.shape[:2]), False, None, None, out=_channels_first(out)
    )


def _channels_first(pixels: Pixels) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]
