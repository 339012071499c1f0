"""Decoding the region alone, with nvimgcodec's libjpeg-turbo, and torch's resize. Needs no GPU."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resscale.data.augment import Crop, Uniforms
from resscale.data.decode import JPEG_START, MAX_PIXELS, Pixels
from resscale.data.decode_pillow import PillowDecoder
from resscale.data.decode_region import pixels_needed, region_of, resize_pixels

_MODULE = "nvidia.nvimgcodec"
_EXTENSIONS = "NVIMGCODEC_EXTENSIONS_PATH"
_VERBOSITY = "PYNVIMGCODEC_VERBOSITY"
JPEG_END = b"\xff\xd9"
_LOADING = threading.Lock()


class NvimgcodecDecoder:
    """Decodes the region of an ordinary JPEG; all else, and what looks damaged, is Pillow's.

    What lies below the region is not looked at. So a JPEG must end as one does, or Pillow decides:
    one that was cut short would pass otherwise, as long as the cut is below the region.

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
        if not (data.startswith(JPEG_START) and data.endswith(JPEG_END)):
            return False
        codec = _codec_of_thread()
        try:
            stream = codec.library.CodeStream(data)
            width, height, components = stream.width, stream.height, stream.num_channels
        except RuntimeError:
            return False
        # Four components are CMYK or YCCK; grey is made of colours by Pillow's formula alone.
        if components not in ((1,) if self.channels == 1 else (1, 3)):
            return False
        if not 0 < width * height <= MAX_PIXELS:
            return False
        region = region_of(crop.box(width, height, uniform), width, height, crop.size)
        if region.is_empty:
            return False
        left, top, right, bottom = pixels_needed(region, width, height)
        image = codec.decode(stream, (left, top, right, bottom), self.channels)
        if image is None:
            return False
        resize_pixels(image, left, top, region, out)
        return True


class _Codec:
    """The library and one decoder of it, for one thread: two in one decoder end the process."""

    def __init__(self) -> None:
        library = self.library = load_library()
        self.pid = os.getpid()
        self._decoder = library.Decoder(
            device_id=library.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=1,  # more start threads of their own in every reading process
            backends=[library.Backend(library.BackendKind.CPU_ONLY)],
        )
        self._params = {
            channels: library.DecodeParams(
                apply_exif_orientation=False,
                color_spec=library.ColorSpec.GRAY if channels == 1 else library.ColorSpec.SRGB,
            )
            for channels in (1, 3)
        }

    def decode(self, stream: Any, edges: tuple[int, int, int, int], channels: int) -> Pixels | None:
        left, top, right, bottom = edges
        try:
            part = stream.get_sub_code_stream(0, self.library.Region(top, left, bottom, right))
            image = self._decoder.decode(part, params=self._params[channels])
        except RuntimeError:
            return None
        if image is None:
            return None
        pixels: Pixels = np.asarray(image)
        return pixels if pixels.shape == (bottom - top, right - left, channels) else None


_THREAD = threading.local()


def _codec_of_thread() -> _Codec:
    codec: _Codec | None = getattr(_THREAD, "codec", None)
    if codec is None or codec.pid != os.getpid():  # a forked process needs one of its own
        codec = _THREAD.codec = _Codec()
    return codec


def load_library(*, with_gpu: bool = False) -> Any:
    """Import nvimgcodec, once in a process, with its libjpeg-turbo alone, or with nvJPEG as well.

    It would also load what needs CUDA, OpenCV and TIFF: twice the memory in each process, and six
    lines about libraries that are not there.
    """
    with _LOADING:
        return sys.modules[_MODULE] if _MODULE in sys.modules else _load(with_gpu)


def _load(with_gpu: bool) -> Any:
    os.environ.setdefault(_VERBOSITY, "0")  # damage is told by our own errors
    if _EXTENSIONS in os.environ:
        return importlib.import_module(_MODULE)
    spec = importlib.util.find_spec(_MODULE)
    assert spec is not None
    assert spec.origin is not None
    with tempfile.TemporaryDirectory(prefix="resscale-") as folder:
        for name in ("libjpeg_turbo_ext.*", *(("libnvjpeg_ext.*",) if with_gpu else ())):
            for file in (Path(spec.origin).parent / "extensions").glob(name):
                (Path(folder) / file.name).symlink_to(file)
        os.environ[_EXTENSIONS] = folder
        try:
            return importlib.import_module(_MODULE)
        finally:
            del os.environ[_EXTENSIONS]


def is_installed() -> bool:
    """Return whether the wheel is there."""
    try:
        return importlib.util.find_spec(_MODULE) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def why_not() -> str | None:
    """Return why nvimgcodec cannot be used here, None where it can."""
    remedy = "pip install nvidia-nvimgcodec-cu12 (Linux on x86-64 and ARM)"
    if not is_installed():
        return f"nvimgcodec is not installed; {remedy}"
    trial = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 100, 50)).save(trial, "JPEG")
    try:
        decoded = _codec_of_thread()
        image = decoded.decode(decoded.library.CodeStream(trial.getvalue()), (0, 0, 8, 8), 3)
    except Exception as error:  # whatever a library of another platform leads it into
        return f"nvimgcodec does not work here ({type(error).__name__}: {error}); {remedy}"
    if image is None:
        return f"nvimgcodec decodes no JPEG here: its libjpeg-turbo is missing; {remedy}"
    return None
