"""Builders of odd files: all that a data set of photographs holds besides ordinary JPEGs.

`sound()` are those that decode, `damaged()` those that must not, and `corrupt()` those with bytes
changed in the middle, where the verdict is Pillow's, whatever it is. Each returns {name: bytes}.
"""

from __future__ import annotations

import base64
import functools
import io
import random

from PIL import Image
from sklearn.datasets import load_sample_images

WIDTH, HEIGHT = 301, 203  # no multiples of 8 or 16: the last blocks are incomplete

# 24 x 16 pixels, arithmetic coding: jpegtran of libjpeg-turbo made it, nothing in Python can.
_ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQNDAsLDBkSEw8UHRofHh0aHBwgJC4nICIsIxwc"
    "KDcpLDAxNDQ0Hyc5PTgyPC4zNDL/2wBDAQkJCQwLDBgNDRgyIRwhMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIyMjIy"
    "MjIyMjIyMjIyMjIyMjIyMjIyMjL/yQARCAAQABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ALsP"
    "QLuXKPqEsTHReW0V+IumhyeIJcGWroEUSf8A078bf571IQBRtQE/iUhWsAT/2Q=="
)
_SOF0, _ADOBE = b"\xff\xc0", b"Adobe"


@functools.cache
def photo() -> Image.Image:
    """Return a part of a real photograph, WIDTH x HEIGHT."""
    return Image.fromarray(load_sample_images().images[0]).crop((200, 100, 200 + WIDTH, 303))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    """Return an image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def sound() -> dict[str, bytes]:
    """Return files that decode."""
    image = photo()
    rotated = Image.Exif()
    rotated[0x0112] = 6  # orientation: to be turned by 90 degrees, which training does not
    plain = encoded(image, quality=90)
    files = {
        "4:2:0": plain,
        "4:2:2": encoded(image, subsampling="4:2:2"),
        "4:4:4": encoded(image, subsampling="4:4:4"),
        "grey": encoded(image.convert("L")),
        "progressive": encoded(image, progressive=True),
        "progressive-4:4:4": encoded(image, progressive=True, subsampling="4:4:4"),
        "restart-markers": encoded(image, restart_marker_rows=1),
        "rgb-jpeg": encoded(image, keep_rgb=True),
        "cmyk": encoded(image.convert("CMYK")),
        "ycck": _ycck(image),
        "arithmetic": _ARITHMETIC,
        "exif-rotated": encoded(image, exif=rotated),
        "exif-upright": encoded(image),
        "trailing-bytes": plain + bytes(37),
        "two-images": plain + encoded(image.resize((40, 30))),
        "cut-short-and-ended": plain[: len(plain) // 2] + b"\xff\xd9",
        "1x1": encoded(image.resize((1, 1))),
        "grey-1x1": encoded(image.convert("L").resize((1, 1))),
        "very-wide": encoded(image.resize((1500, 3))),
        "very-high": encoded(image.resize((2, 1500))),
        "png": encoded(image, "PNG"),
        "png-palette": encoded(image.quantize(64), "PNG"),
        "png-alpha": encoded(_with_alpha(image), "PNG"),
        "png-16-bit": encoded(image.convert("L").convert("I;16"), "PNG"),
        "webp": encoded(image, "WEBP"),
        "gif": encoded(image, "GIF"),
        "bmp": encoded(image, "BMP"),
    }
    return {**files, **_of_simplejpeg(image)}


@functools.cache
def damaged() -> dict[str, bytes]:
    """Return files that no decoder may take."""
    whole = sound()["4:2:0"]
    cuts = {f"cut-at-{share:.0%}": whole[: int(share * len(whole))] for share in (0.1, 0.5, 0.9)}
    progressive = sound()["progressive"]
    return {
        **cuts,
        "cut-at-99%": whole[: int(0.99 * len(whole))],
        "without-its-end": whole[:-2],
        "progressive-cut-at-90%": progressive[: int(0.9 * len(progressive))],
        "empty": b"",
        "text": b"<html>404 not found</html>",
        "start-marker-alone": b"\xff\xd8\xff",
        "start-and-end": b"\xff\xd8\xff\xd9",
        "header-alone": whole[: whole.index(b"\xff\xda")],
        "no-width": _with_size(whole, 0, HEIGHT),
        "bomb": _with_size(whole, 65_000, 65_000),
        "zeros": bytes(2_000),
        "png-cut": sound()["png"][:20_000],
    }


@functools.cache
def corrupt() -> dict[str, bytes]:
    """Return JPEGs with bytes changed in the middle: some decode to a wrong picture."""
    whole = sound()["4:2:0"]
    start = whole.index(b"\xff\xda") + 14
    files = {}
    for share in (0.05, 0.5, 0.95):
        at = start + int(share * (len(whole) - start - 40))
        files[f"zeros-at-{share:.0%}"] = whole[:at] + bytes(20) + whole[at + 20 :]
        files[f"markers-at-{share:.0%}"] = whole[:at] + b"\xff\xd0" * 10 + whole[at + 20 :]
        files[f"scan-ends-at-{share:.0%}"] = whole[:at] + b"\xff\xd9" + whole[at + 2 :]
        files[f"missing-at-{share:.0%}"] = whole[:at] + whole[at + 20 :]
    rng = random.Random(0)
    for number in range(12):
        at = rng.randrange(2, len(whole) - 2)
        files[f"byte-{number}"] = whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :]
    return files


def _ycck(image: Image.Image) -> bytes:
    """Pillow writes CMYK as it is; the same file with Adobe's mark for YCCK has other colours."""
    raw = bytearray(encoded(image.convert("CMYK"), quality=90))
    transform = raw.index(_ADOBE) + 11
    assert raw[transform] == 0
    raw[transform] = 2
    return bytes(raw)


def _with_alpha(image: Image.Image) -> Image.Image:
    alpha = image.copy()
    alpha.putalpha(image.convert("L"))
    return alpha


def _with_size(raw: bytes, width: int, height: int) -> bytes:
    """Return a baseline JPEG whose header claims another size."""
    at = raw.index(_SOF0) + 5
    return raw[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + raw[at + 4 :]


def _of_simplejpeg(image: Image.Image) -> dict[str, bytes]:
    """Return the subsamplings that Pillow does not write; none without simplejpeg."""
    try:
        from simplejpeg import encode_jpeg
    except ImportError:
        return {}
    import numpy as np

    pixels = np.ascontiguousarray(image)
    return {
        f"4:{kind[1]}:{kind[2]}": encode_jpeg(pixels, quality=90, colorsubsampling=kind)
        for kind in ("440", "411")
    }
