"""Decoding and resizing on a GPU, with nvimgcodec's nvJPEG: the CPU does little but read.

Not yet measured, and not yet run on a GPU.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
import torch.utils.dlpack

from resscale.data.augment import Crop, Cut, Uniforms
from resscale.data.decode import JPEG_START, MAX_PIXELS, Pixels
from resscale.data.decode_nvimgcodec import JPEG_END, is_installed, load_library
from resscale.data.decode_pillow import PillowDecoder
from resscale.data.decode_region import pixels_needed, region_of, resize_pixels

_REMEDY = 'pip install "nvidia-nvimgcodec-cu12[nvjpeg]" (Linux)'
_PARTS = {1: ("GRAY", (1,)), 3: ("SRGB", (1, 3))}  # colours asked for, components taken


class NvimgcodecGpuDecoder:
    """Decodes the region of an ordinary JPEG on a GPU; all else is Pillow's, on the CPU.

    The sample comes back to the host, 150 kB at 224 pixels, so that batches, damaged samples and
    their replacement stay what they are. Each reader has a CUDA context of its own where readers
    are processes: read with threads.

    Args:
        channels: 3 gives RGB, 1 gives luminance.
        device: number of the GPU; None: torch's current one where the decoder is built.
    """

    def __init__(self, channels: int = 3, device: int | None = None) -> None:
        self.channels = channels
        # Not asked for by the threads: CUDA's current device is each thread's own, at first 0.
        self.device = torch.cuda.current_device() if device is None else device
        self._pillow = PillowDecoder(channels)

    def decode(self, data: bytes, crop: Crop, uniform: Uniforms, out: Pixels) -> None:
        """Fill `out`, uint8 (size, size, channels); see `Decoder`."""
        if not self._decode_region(data, crop, uniform, out):
            self._pillow.decode(data, crop, uniform, out)

    def _decode_region(self, data: bytes, crop: Crop, uniform: Uniforms, out: Pixels) -> bool:
        if not (data.startswith(JPEG_START) and data.endswith(JPEG_END)):
            return False
        codec = _codec_of_thread(self.device)
        try:
            stream = codec.library.CodeStream(data)
            width, height, components = stream.width, stream.height, stream.num_channels
        except RuntimeError:
            return False
        if components not in _PARTS[self.channels][1] or not 0 < width * height <= MAX_PIXELS:
            return False
        region = region_of(crop.box(width, height, uniform), width, height, crop.size)
        if region.is_empty:
            return False
        left, top, right, bottom = pixels_needed(region, width, height)
        image = codec.decode(stream, (left, top, right, bottom), self.channels)
        if image is None:
            return False
        if isinstance(region.source, Cut) and region.fills(crop.size):
            out[:] = resize_on_device(image, crop.size).cpu().numpy()
        else:
            resize_pixels(image.cpu().numpy(), left, top, region, out)
        return True


def resize_on_device(image: torch.Tensor, size: int) -> torch.Tensor:
    """Return a cut resized as Pillow does, where the image is: uint8 (size, size, channels).

    Args:
        image: uint8 (height, width, channels).
        size: side of the result in pixels.
    """
    if tuple(image.shape[:2]) == (size, size):
        return image
    # CUDA's kernel knows no 8-bit integers.
    small = torch.nn.functional.interpolate(
        image.permute(2, 0, 1)[None].float(), (size, size), mode="bilinear", antialias=True
    )
    return small[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)


class _GpuCodec:
    """The library and one decoder of it, for one thread and one GPU."""

    def __init__(self, device: int) -> None:
        library = self.library = load_library(with_gpu=True)
        kinds = library.BackendKind
        self._decoder = library.Decoder(
            device_id=device,
            max_num_cpu_threads=1,
            backends=[
                library.Backend(kind)
                for kind in (kinds.HW_GPU_ONLY, kinds.GPU_ONLY, kinds.HYBRID_CPU_GPU)
            ],
            options=":fancy_upsampling=1",  # colours as libjpeg-turbo spreads them
        )
        self._params = {
            channels: library.DecodeParams(
                apply_exif_orientation=False, color_spec=getattr(library.ColorSpec, colours)
            )
            for channels, (colours, _) in _PARTS.items()
        }

    def decode(
        self, stream: Any, edges: tuple[int, int, int, int], channels: int
    ) -> torch.Tensor | None:
        left, top, right, bottom = edges
        try:
            part = stream.get_sub_code_stream(0, self.library.Region(top, left, bottom, right))
            image = self._decoder.decode(part, params=self._params[channels])
        except RuntimeError:
            return None
        if image is None:
            return None
        pixels: torch.Tensor = torch.utils.dlpack.from_dlpack(image)
        return pixels if pixels.shape == (bottom - top, right - left, channels) else None


_THREAD = threading.local()


def _codec_of_thread(device: int) -> _GpuCodec:
    codecs: dict[int, _GpuCodec] = _THREAD.__dict__.setdefault("codecs", {})
    if device not in codecs:
        codecs[device] = _GpuCodec(device)
    return codecs[device]


@functools.cache
def why_not() -> str | None:
    """Return why a GPU cannot decode here, None where it can."""
    if not is_installed():
        return f"nvimgcodec is not installed; {_REMEDY}"
    if not torch.cuda.is_available():
        return "torch sees no GPU here"
    import io

    from PIL import Image

    trial = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 100, 50)).save(trial, "JPEG")
    try:
        codec = _codec_of_thread(torch.cuda.current_device())
        image = codec.decode(codec.library.CodeStream(trial.getvalue()), (0, 0, 64, 64), 3)
    except Exception as error:  # whatever drivers and libraries lead it into
        return f"nvimgcodec does not work here ({type(error).__name__}: {error}); {_REMEDY}"
    return None if image is not None else f"nvimgcodec finds no nvJPEG here; {_REMEDY}"
