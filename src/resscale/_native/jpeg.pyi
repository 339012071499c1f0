"""JPEG regions, decoded over libjpeg-turbo's public interface."""

import numpy as np
import numpy.typing as npt

LIBJPEG: str

class JpegError(ValueError):
    """A file that is refused, as a decompression bomb is."""

def read_header(data: bytes | bytearray | memoryview) -> tuple[int, int] | str:
    """Return (width, height), or the reason why Pillow should look at it."""

def decode(
    data: bytes | bytearray | memoryview,
    left: float,
    top: float,
    right: float,
    bottom: float,
    cut: bool,
    out: npt.NDArray[np.uint8],
) -> str | None:
    """Fill out, uint8 (size, size, channels); or the reason why Pillow should decode it."""
