"""One image on its way into a shard: bytes kept, damage found, sizes only ever brought down."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from resscale.data.pack_images import (
    BadSample,
    ImageRules,
    encode_pixels,
    format_of,
    is_whole_jpeg,
    prepare_image,
)

FULL = ImageRules()
PHOTO = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"  # 640 x 427 pixels


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def opened(raw: bytes) -> Image.Image:
    return Image.open(io.BytesIO(raw))


@pytest.fixture
def photo(jpegs: tuple[bytes, ...]) -> Image.Image:
    return opened(jpegs[0])  # 96 x 80 pixels


@pytest.mark.parametrize("check", ["full", "header", "none"])
def test_original_bytes_are_kept(jpegs: tuple[bytes, ...], photo: Image.Image, check: str) -> None:
    rules = ImageRules(check=check)
    assert prepare_image(jpegs[0], rules) == ("jpg", jpegs[0])
    for kind, extension in (("PNG", "png"), ("WEBP", "webp")):
        raw = encoded(photo, kind)
        assert prepare_image(raw, rules) == (extension, raw)


def test_format_is_told_by_the_bytes(photo: Image.Image) -> None:
    assert format_of(encoded(photo, "PNG")) == "png"
    assert format_of(encoded(photo, "BMP")) is None


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM", "TIFF"])
def test_other_formats_become_jpeg(photo: Image.Image, kind: str) -> None:
    extension, raw = prepare_image(encoded(photo, kind), ImageRules(check="none"))
    assert extension == "jpg"
    assert opened(raw).format == "JPEG"
    assert opened(raw).size == photo.size


def test_resize_brings_the_shorter_side_down() -> None:
    extension, raw = prepare_image(PHOTO.read_bytes(), ImageRules(resize=64))
    assert extension == "jpg"
    assert opened(raw).size == (96, 64)  # 640 x 64/427 = 95.9


def test_resize_is_antialiased() -> None:
    stripes = np.zeros((64, 64), np.uint8)
    stripes[:, ::2] = 255
    _, raw = prepare_image(encoded(Image.fromarray(stripes), "PNG"), ImageRules(resize=16))
    assert np.abs(np.asarray(opened(raw)).astype(int) - 127)[:, 2:-2].max() < 10


@pytest.mark.parametrize("resize", [80, 81, 1000])
def test_resize_never_enlarges(jpegs: tuple[bytes, ...], resize: int) -> None:
    assert prepare_image(jpegs[0], ImageRules(resize=resize)) == ("jpg", jpegs[0])


@pytest.mark.parametrize(
    ("mode", "kind", "stored"),
    [
        ("L", "JPEG", "L"),
        ("CMYK", "JPEG", "RGB"),
        ("1", "PNG", "L"),
        ("P", "PNG", "RGB"),
        ("RGBA", "PNG", "RGBA"),
        ("RGBA", "WEBP", "RGBA"),
        ("I;16", "PNG", "I;16"),
    ],
)
def test_resize_of_each_mode(photo: Image.Image, mode: str, kind: str, stored: str) -> None:
    image = photo.convert("I").convert("I;16") if mode == "I;16" else photo.convert(mode)
    if mode == "RGBA":
        image.putalpha(100)  # an opaque one would not be stored
    raw = encoded(image, kind)
    extension, small = prepare_image(raw, ImageRules(resize=40))
    assert opened(small).size == (48, 40)  # 96 x 40/80
    assert opened(small).mode == stored
    assert extension == {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]


def test_quality_changes_what_is_encoded_anew() -> None:
    raw = PHOTO.read_bytes()
    small, large = (prepare_image(raw, ImageRules(resize=200, quality=q))[1] for q in (50, 95))
    assert len(small) < len(large)


def test_resized_jpegs_have_huffman_tables_of_their_own() -> None:
    _, stored = prepare_image(PHOTO.read_bytes(), ImageRules(resize=200, quality=90))
    same, plain = Image.open(io.BytesIO(stored)), io.BytesIO()
    same.save(plain, "JPEG", quality="keep")  # the same coefficients in the standard's tables
    assert len(stored) < len(plain.getvalue())


@pytest.mark.parametrize("rules", [FULL, ImageRules(check="header"), ImageRules("header", 600)])
@pytest.mark.parametrize("cut", [2, 40, 1000, 100_000])
def test_truncated_jpeg_is_found_unless_it_is_trusted(cut: int, rules: ImageRules) -> None:
    raw = PHOTO.read_bytes()[:-cut]
    with pytest.raises(BadSample, match="image file is truncated"):
        prepare_image(raw, rules)
    assert prepare_image(raw, ImageRules(check="none")) == ("jpg", raw)


@pytest.mark.parametrize("rules", [FULL, ImageRules(check="header")])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_whole_jpeg_of_any_kind_is_kept(mode: str, progressive: bool, rules: ImageRules) -> None:
    buffer = io.BytesIO()
    Image.open(PHOTO).convert(mode).save(buffer, "JPEG", progressive=progressive)
    raw = buffer.getvalue()
    assert is_whole_jpeg(raw)
    for data in (raw, raw + b"more behind its end"):
        assert prepare_image(data, rules) == ("jpg", data)


def test_end_mark_of_a_preview_in_the_header_is_not_the_images(jpegs: tuple[bytes, ...]) -> None:
    preview = jpegs[0]
    size = len(preview) + 2
    raw = b"\xff\xd8\xff\xe1" + size.to_bytes(2, "big") + preview + PHOTO.read_bytes()[2:]
    assert is_whole_jpeg(raw)
    begin = len(raw) - len(PHOTO.read_bytes())
    for cut in (2, 1000, 100_000, len(raw) - begin, len(raw) - 500):
        assert not is_whole_jpeg(raw[:-cut])


def test_header_out_of_order_is_left_to_pillow(jpegs: tuple[bytes, ...]) -> None:
    raw = jpegs[0]
    frame = raw.index(b"\xff\xc0")
    without_size = raw[: frame + 5] + bytes(4) + raw[frame + 9 :]
    without_length = raw[:4] + b"\0\0" + raw[6:]
    for damaged in (without_size, without_length, raw[:3] + b"\0" + raw[4:], b"\xff\xd8", b""):
        assert not is_whole_jpeg(damaged)
    # Fill bytes in front of a marker are allowed; Pillow reads them, so the image is kept.
    padded = raw[:frame] + b"\xff" + raw[frame:]
    assert prepare_image(padded, ImageRules(check="header")) == ("jpg", padded)


def test_bytes_that_are_no_image() -> None:
    with pytest.raises(BadSample, match=r"^not an image"):
        prepare_image(b"hello", FULL)
    with pytest.raises(BadSample, match=r"^not an image"):
        prepare_image(b"\xff\xd8\xffhello", FULL)


@pytest.mark.parametrize("check", ["full", "header", "none"])
def test_empty_file(check: str) -> None:
    with pytest.raises(BadSample, match="empty file"):
        prepare_image(b"", ImageRules(check=check))


def test_very_large_image_is_packed_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 640 * 427 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prepare_image(PHOTO.read_bytes(), FULL)[0] == "jpg"


def test_lack_of_memory_is_not_the_samples_fault(
    jpegs: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", exhausted)
    with pytest.raises(MemoryError):
        prepare_image(jpegs[0], FULL)


def test_raw_pixels() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    extension, raw = encode_pixels(pixels.tobytes(), (3, 4), ImageRules(format="png"))
    assert extension == "png"
    np.testing.assert_array_equal(np.asarray(opened(raw)), pixels)
    extension, raw = encode_pixels(pixels.tobytes(), (3, 4), ImageRules(quality=100))
    assert extension == "jpg"
    assert np.abs(np.asarray(opened(raw)).astype(int) - pixels).max() <= 3


def test_raw_planes_of_red_green_and_blue() -> None:
    planes = np.random.default_rng(0).integers(0, 256, (3, 8, 16), np.uint8)
    extension, raw = encode_pixels(planes.tobytes(), (3, 8, 16), ImageRules(format="png"))
    assert extension == "png"
    np.testing.assert_array_equal(np.asarray(opened(raw)), planes.transpose(1, 2, 0))


def test_raw_colours_keep_their_resolution_in_a_jpeg() -> None:
    columns = np.zeros((3, 16, 16), np.uint8)
    columns[0, :, ::2] = 255  # red and blue in turn: at half the resolution, all would be purple
    columns[2, :, 1::2] = 255
    _, raw = encode_pixels(columns.tobytes(), (3, 16, 16), ImageRules(quality=100))
    stored = np.asarray(opened(raw)).astype(int)
    assert np.abs(stored - columns.transpose(1, 2, 0)).max() <= 3
