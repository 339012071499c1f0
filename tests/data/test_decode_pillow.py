"""Pixels: equal to the two-step reference, three channels from any image, no damage overlooked."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from resscale.data.augment import Box, CenterCrop, Crop, PadCrop, RandomResizedCrop
from resscale.data.decode import DecodeError, Pixels
from resscale.data.decode_pillow import PillowDecoder

RAMP = (np.arange(36, dtype=np.uint8) * 7).reshape(6, 6)  # 0, 7, ... 245: each pixel is known


class Fixed:
    """A crop that always takes the same region."""

    num_uniforms = 0

    def __init__(self, size: int, *box: float) -> None:
        self.size = size
        self.region = Box(*box)

    def box(self, width: int, height: int, uniform: np.ndarray) -> Box:
        return self.region


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(raw: bytes, crop: Crop, uniform: tuple[float, ...] = (), channels: int = 3) -> Pixels:
    out = np.full((crop.size, crop.size, channels), 77, dtype=np.uint8)  # nothing may stay 77
    PillowDecoder(channels).decode(raw, crop, np.array(uniform), out)
    return out


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = ((one.astype(float) - other.astype(float)) ** 2).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def reference(image: Image.Image, size: int, resize: int) -> np.ndarray:
    """Resize the shorter side to a whole number of pixels, then cut the centre out."""
    short = min(image.size)
    wide, high = (int(resize * side / short) for side in image.size)
    left, top = round((wide - size) / 2.0), round((high - size) / 2.0)
    small = image.resize((wide, high), Image.Resampling.BILINEAR)
    return np.asarray(small.crop((left, top, left + size, top + size)))


# The centre, against two steps


@pytest.mark.parametrize("photo", [0, 1])
@pytest.mark.parametrize(
    ("width", "height"), [(640, 427), (427, 427), (301, 425), (200, 90), (90, 301)]
)
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (64, 64), (33, 47)])
def test_the_centre_has_the_pixels_of_resize_then_crop(
    photo: int, width: int, height: int, size: int, resize: int
) -> None:
    image = Image.fromarray(load_sample_images().images[photo]).crop((0, 0, width, height))
    found = decoded(encoded(image), CenterCrop(size, resize))
    assert psnr(found, reference(image, size, resize)) > 45


def test_a_region_half_a_pixel_off_would_be_noticed() -> None:
    image = Image.fromarray(load_sample_images().images[0])
    x = 640 / 383  # int(256 × 640 / 427) = 383: one resized pixel
    exact = CenterCrop(224, 256).box(640, 427, np.empty(0))
    moved = Fixed(224, exact.left + x / 2, exact.top, exact.right + x / 2, exact.bottom)
    assert psnr(decoded(encoded(image), moved), reference(image, 224, 256)) < 45


# Padding


@pytest.mark.parametrize(
    ("uniform", "dx", "dy"), [((0.0, 0.0), -2, -2), ((0.5, 0.5), 0, 0), ((0.99, 0.3), 2, -1)]
)
def test_a_padded_crop_is_the_image_moved_over_black(uniform, dx: int, dy: int) -> None:
    raw = encoded(Image.fromarray(RAMP))
    found = decoded(raw, PadCrop(6, padding=2), uniform, channels=1)[:, :, 0]
    behind = np.zeros((10, 10), dtype=np.uint8)
    behind[2:8, 2:8] = RAMP
    assert found.tolist() == behind[2 + dy : 8 + dy, 2 + dx : 8 + dx].tolist()


def test_a_padded_crop_scales_the_image_and_its_shift() -> None:
    raw = encoded(Image.fromarray(np.full((12, 24, 3), 200, dtype=np.uint8)))
    found = decoded(raw, PadCrop(6, padding=2), (0.0, 0.99))  # 2 to the right, 2 up
    assert (found[:4, 2:] == 200).all()
    assert (found[4:] == 0).all()
    assert (found[:, :2] == 0).all()


def test_a_region_outside_the_image_is_black() -> None:
    raw = encoded(Image.fromarray(RAMP))
    assert (decoded(raw, Fixed(4, 50, 50, 54, 54)) == 0).all()
    assert (decoded(raw, Fixed(4, -9, 0, -5, 4)) == 0).all()


# Any region


def test_a_region_at_its_own_size_is_copied() -> None:
    found = decoded(encoded(Image.fromarray(RAMP)), Fixed(3, 2, 1, 5, 4))
    assert found.tolist() == np.repeat(RAMP[1:4, 2:5, None], 3, axis=2).tolist()


def test_the_region_of_the_uniforms_is_decoded() -> None:
    crop = RandomResizedCrop(20, scale=(0.2, 0.6))
    image = Image.fromarray(load_sample_images().images[1])
    uniform = tuple(np.random.default_rng(1).random(crop.num_uniforms))
    box = crop.box(640, 427, np.array(uniform))
    expected = image.crop(tuple(map(int, box))).resize((20, 20), Image.Resampling.BILINEAR)
    found = decoded(encoded(image), crop, uniform)
    assert psnr(found, np.asarray(expected)) > 30  # the resized cut differs at its edges only
    assert found[5:-5, 5:-5].tolist() == np.asarray(expected)[5:-5, 5:-5].tolist()


# Any image


@pytest.mark.parametrize(
    ("image", "kind", "expected"),
    [
        (Image.new("RGB", (9, 9), (200, 30, 60)), "PNG", (200, 30, 60)),
        (Image.new("L", (9, 9), 128), "JPEG", (128, 128, 128)),
        (Image.new("CMYK", (9, 9), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),  # magenta + yellow
        (Image.new("RGB", (9, 9), (0, 0, 255)).quantize(4), "PNG", (0, 0, 255)),
        (Image.new("RGBA", (9, 9), (10, 200, 30, 255)), "PNG", (10, 200, 30)),
        (Image.new("1", (9, 9), 1), "PNG", (255, 255, 255)),
        (Image.new("RGB", (9, 9), (7, 8, 9)), "WEBP", (7, 8, 9)),
        (Image.new("RGB", (9, 9), (7, 8, 9)), "PPM", (7, 8, 9)),
    ],
    ids=["rgb", "grey-jpeg", "cmyk-jpeg", "palette-png", "rgba", "bilevel", "webp", "ppm"],
)
def test_every_kind_of_image_becomes_rgb(image: Image.Image, kind: str, expected) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decoded(encoded(image, kind, **options), CenterCrop(5, 5))
    assert np.abs(found.astype(int) - expected).max() <= 2  # JPEG rounds


def test_one_channel_is_luminance() -> None:
    raw = encoded(Image.new("RGB", (9, 9), (255, 0, 0)))
    found = decoded(raw, CenterCrop(5, 5), channels=1)
    assert found.shape == (5, 5, 1)
    assert (found == 76).all()  # ITU-R 601: 0.299 × 255


# Damage


def test_a_truncated_jpeg_is_an_error_not_grey(jpegs: tuple[bytes, ...]) -> None:
    raw = jpegs[0]
    decoded(raw, CenterCrop(32, 32))
    for length in (len(raw) // 2, len(raw) - 200):
        with pytest.raises(DecodeError, match="OSError: image file is truncated"):
            decoded(raw[:length], CenterCrop(32, 32))


@pytest.mark.parametrize("raw", [b"", b"no image", b"\xff\xd8\xff\xe0" + bytes(40)])
def test_bytes_that_are_no_image_are_an_error(raw: bytes) -> None:
    with pytest.raises(DecodeError, match="not an image that Pillow can read"):
        decoded(raw, CenterCrop(8, 8))


def test_a_damaged_png_is_an_error() -> None:
    raw = bytearray(encoded(Image.fromarray(load_sample_images().images[0])))
    raw[5000:5010] = bytes(10)
    with pytest.raises(DecodeError):
        decoded(bytes(raw), CenterCrop(8, 8))


def test_too_little_memory_is_no_fault_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(MemoryError):
        PillowDecoder().decode(b"", CenterCrop(8, 8), np.empty(0), np.empty((8, 8, 3), np.uint8))
