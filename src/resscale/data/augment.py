"""Which region of an image is decoded, as pure functions of its size and of uniforms in [0, 1).

Flips, normalisation and mixing are not here: they run on the device, for whole batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Uniforms = npt.NDArray[np.float64]


class Box(NamedTuple):
    """A region in source pixels; parts outside the image are filled with black."""

    left: float
    top: float
    right: float
    bottom: float


class Cut(Box):
    """A box of whole pixels inside the image, cut out before it is resized.

    At the edges of any other box the pixels around it take part in the resize, as in an image that
    is resized first and cut then; at the edges of a cut they do not (torchvision's
    RandomResizedCrop).
    """

    __slots__ = ()


class Crop(Protocol):
    """Chooses the region of an image that becomes the `size` × `size` sample."""

    @property
    def size(self) -> int:
        """Side of the result in pixels."""
        ...

    @property
    def num_uniforms(self) -> int:
        """Uniforms that `box` takes."""
        ...

    def box(self, width: int, height: int, uniform: Uniforms) -> Box:
        """Return the region for an image of `width` × `height` pixels."""
        ...

    def at_size(self, size: int) -> Crop:
        """Return the same choice of regions for results of another side, in pixels."""
        ...


@dataclass(frozen=True)
class RandomResizedCrop:
    """A region of random area and aspect, resized to `size` (Szegedy et al. 2014, section 6).

    Args:
        size: side of the result in pixels.
        scale: range of the region's share of the image's area.
        ratio: range of the region's width / height, drawn log-uniformly.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    attempts: int = 10

    @property
    def num_uniforms(self) -> int:
        """Two for each attempt, two for the place."""
        return 2 * self.attempts + 2

    def box(self, width: int, height: int, uniform: Uniforms) -> Box:
        """Return the first drawn region that fits, else the largest central one of legal aspect."""
        area = width * height
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(self.attempts):
            target = area * _between(*self.scale, uniform[2 * attempt])
            aspect = math.exp(_between(low, high, uniform[2 * attempt + 1]))
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                left = int(uniform[-2] * (width - w + 1))
                top = int(uniform[-1] * (height - h + 1))
                return Cut(left, top, left + w, top + h)
        w, h = width, height
        if width < self.ratio[0] * height:
            h = round(width / self.ratio[0])
        elif width > self.ratio[1] * height:
            w = round(height * self.ratio[1])
        left, top = (width - w) // 2, (height - h) // 2
        return Cut(left, top, left + w, top + h)

    def at_size(self, size: int) -> RandomResizedCrop:
        """Return the same regions, resized to another side."""
        return replace(self, size=size)


@dataclass(frozen=True)
class PadCrop:
    """The image at `size`, moved by up to `padding` pixels, black behind (He et al. 2015, 4.2).

    Args:
        size: side of the result in pixels; the image's sides are scaled to it.
        padding: largest shift in pixels of the result.
    """

    size: int
    padding: int = 4
    num_uniforms: int = 2

    def box(self, width: int, height: int, uniform: Uniforms) -> Box:
        """Return the image's frame, shifted by whole pixels of the result."""
        dx, dy = (int(u * (2 * self.padding + 1)) - self.padding for u in uniform)
        x, y = width / self.size, height / self.size
        return Box(dx * x, dy * y, (dx + self.size) * x, (dy + self.size) * y)

    def at_size(self, size: int) -> PadCrop:
        """Return the crop of another side, shifted by the same share of it."""
        return replace(self, size=size, padding=round(self.padding * size / self.size))


@dataclass(frozen=True)
class CenterCrop:
    """The shorter side resized to `resize`, then the central `size` × `size` cut out.

    Both steps are one region: the resized side is an integer and the offset a whole pixel of it, as
    in the two-step reference, else the picture moves by a fraction of a pixel.

    Args:
        size: side of the result in pixels.
        resize: shorter side of the image before the cut, in pixels.
    """

    size: int
    resize: int
    num_uniforms: int = 0

    def box(self, width: int, height: int, uniform: Uniforms) -> Box:
        """Return the central region; `uniform` is not used."""
        if width <= height:
            wide, high = self.resize, int(self.resize * height / width)
        else:
            wide, high = int(self.resize * width / height), self.resize
        left, top = round((wide - self.size) / 2.0), round((high - self.size) / 2.0)
        x, y = width / wide, height / high
        return Box(left * x, top * y, (left + self.size) * x, (top + self.size) * y)

    def at_size(self, size: int) -> CenterCrop:
        """Return the crop of another side, of the same share of the image."""
        return replace(self, size=size, resize=round(self.resize * size / self.size))


def _between(low: float, high: float, uniform: float) -> float:
    return low + (high - low) * uniform
