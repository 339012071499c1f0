"""One image on its way into a shard: told by its first bytes, checked, made smaller if asked."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

JPEG, PNG, WEBP = "jpg", "png", "webp"
_START_OF_SCAN = 0xDA
# Start of a frame: baseline, progressive and others; three numbers between them are something else.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PILLOW_FORMAT = {JPEG: "JPEG", PNG: "PNG", WEBP: "WEBP"}


class BadSample(Exception):
    """A sample cannot be used; the text is the reason, for `left_out.jsonl`."""


@dataclass(frozen=True)
class ImageRules:
    """How images are stored.

    Args:
        check: "full" decodes each, "header" reads the header and looks for a JPEG's end, "none"
            trusts the source.
        resize: shorter side in pixels that larger images are brought down to; None for never.
        quality: JPEG and WebP quality of what is encoded anew, 1 to 100.
        format: "jpg" or "png", for sources of raw pixels.
    """

    check: str = "full"
    resize: int | None = None
    quality: int = 90
    format: str = JPEG


def format_of(raw: bytes) -> str | None:
    """Return "jpg", "png" or "webp" by the first bytes (names lie), None for anything else."""
    if raw.startswith(b"\xff\xd8\xff"):
        return JPEG
    if raw.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        return WEBP
    return None


def is_whole_jpeg(raw: bytes) -> bool:
    """Return whether a JPEG's header is in order and the mark that ends it is there.

    A few microseconds, where Pillow takes a hundred to read the header. A file that was cut off has
    no such mark behind its header. False does not say that it is damaged.
    """
    place, sized = 2, False
    try:
        while raw[place + 1] != _START_OF_SCAN:
            if raw[place] != 0xFF or raw[place + 1] < 0xC0:
                return False
            if raw[place + 1] in _FRAMES:
                sized = raw[place + 5 : place + 7] != b"\0\0" != raw[place + 7 : place + 9]
            length = int.from_bytes(raw[place + 2 : place + 4], "big")
            if length < 2:
                return False
            place += 2 + length
    except IndexError:
        return False
    return raw.startswith(b"\xff\xd8") and sized and raw.rfind(b"\xff\xd9", place) > place


def prepare_image(raw: bytes, rules: ImageRules) -> tuple[str, bytes]:
    """Return the extension and the bytes to store: the very bytes given, wherever possible.

    JPEG, PNG and WebP keep their bytes unless `resize` makes them smaller; other formats become
    JPEG. EXIF orientation is not applied (as in training) and does not survive encoding anew.

    Raises:
        BadSample: empty, not an image, truncated or damaged.
    """
    if not raw:
        raise BadSample("empty file")
    kind = format_of(raw)
    trusted = rules.check == "none" or (rules.check == "header" and is_whole_jpeg(raw))
    if kind and trusted and rules.resize is None:
        return kind, raw
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd EXIF and of very large images; both are packed as they are.
            warnings.simplefilter("ignore")
            return _checked(raw, kind, rules)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise BadSample("not an image, or of a format that Pillow does not know") from None
    except Exception as error:  # Pillow's readers raise whatever the damage leads them into
        raise BadSample(f"{type(error).__name__}: {error}") from error


def encode_pixels(raw: bytes, shape: tuple[int, ...], rules: ImageRules) -> tuple[str, bytes]:
    """Return the extension and the image file of raw 8-bit pixels.

    Args:
        raw: the pixels, row by row, plane after plane.
        shape: (height, width) of gray pixels; (3, height, width) of red, green and blue planes.
        rules: format and quality.
    """
    height, width = shape[-2:]
    size = height * width
    planes = [
        Image.frombytes("L", (width, height), raw[begin : begin + size])
        for begin in range(0, len(raw), size)
    ]
    image = Image.merge("RGB", planes) if len(shape) == 3 else planes[0]
    # Colours at full resolution: a small picture has none to spare.
    return rules.format, _encode(image, rules.format, rules.quality, subsampling=0)


def _checked(raw: bytes, kind: str | None, rules: ImageRules) -> tuple[str, bytes]:
    with Image.open(io.BytesIO(raw)) as image:
        too_large = rules.resize is not None and min(image.size) > rules.resize
        if kind and not too_large:
            if rules.check == "full" or (rules.check == "header" and _may_be_cut_off(raw, kind)):
                # A JPEG is decoded at an eighth of its size: all of its bits are read all the same,
                # which is what can fail, in half the time.
                image.draft(None, (1, 1))
                image.load()
            return kind, raw
        image.load()
        kind = kind or JPEG
        picture = _in_storable_mode(image, kind)
    if rules.resize is not None and too_large:
        scale = rules.resize / min(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        # The gap lets Pillow halve very large images first: much faster, no visible difference.
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    # Huffman tables of its own: a little more work here, 2% less of bytes and of time to decode.
    tables = {"optimize": True} if kind == JPEG else {}
    return kind, _encode(picture, kind, rules.quality, **tables)


def _may_be_cut_off(raw: bytes, kind: str) -> bool:
    return kind == JPEG and not is_whole_jpeg(raw)


def _in_storable_mode(image: Image.Image, kind: str) -> Image.Image:
    if image.mode in ("1", "L"):
        return image.convert("L")
    if image.mode == "P" or image.has_transparency_data:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if kind == JPEG or image.mode not in ("RGB", "RGBA", "I;16"):
        return image.convert("RGB")
    return image


def _encode(image: Image.Image, kind: str, quality: int, **jpeg_options: int) -> bytes:
    buffer = io.BytesIO()
    if kind == PNG:
        image.save(buffer, _PILLOW_FORMAT[kind])
    else:
        image.save(buffer, _PILLOW_FORMAT[kind], quality=quality, **jpeg_options)
    return buffer.getvalue()
