"""The native decoder: Pillow's picture to a fraction of a grey level, and no way to break it."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from odd_images import HEIGHT, WIDTH, corrupt, damaged, encoded, photo, sound
from PIL import Image
from sklearn.datasets import load_sample_images

from resscale import _native
from resscale.data import decode_native
from resscale.data.augment import Box, CenterCrop, Crop, Cut, RandomResizedCrop
from resscale.data.decode import DecodeError, Pixels
from resscale.data.decode_native import NativeDecoder, why_not
from resscale.data.decode_pillow import PillowDecoder

needs_build = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
if why_not() is None:
    from resscale._native import jpeg

ALL = (0.0, 0.0, float(WIDTH), float(HEIGHT))
SAMPLINGS = ("4:2:0", "4:2:2", "4:4:4", "4:4:0", "4:1:1", "progressive", "restart-markers")
# What the picture must reach in any region; a shift of a quarter of a pixel is below 40.
LOWEST_DB = 45.0


class Fixed:
    """A crop that always takes the same region."""

    num_uniforms = 0

    def __init__(self, size: int, box: Box) -> None:
        self.size = size
        self.region = box

    def box(self, width: int, height: int, uniform: np.ndarray) -> Box:
        return self.region


def decoded(
    decoder: NativeDecoder | PillowDecoder, raw: bytes, crop: Crop, seed: int = 0
) -> Pixels:
    out = np.full((crop.size, crop.size, decoder.channels), 77, dtype=np.uint8)
    decoder.decode(raw, crop, np.random.default_rng(seed).random(crop.num_uniforms), out)
    return out


def by_itself(raw: bytes, box: Box, size: int, channels: int = 3) -> Pixels:
    """Decode by the extension alone: Pillow stands in for nothing."""
    out = np.full((size, size, channels), 77, dtype=np.uint8)
    assert jpeg.decode(raw, *box, isinstance(box, Cut), out) is None
    return out


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = ((one.astype(float) - other.astype(float)) ** 2).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def jpeg_of(kind: str) -> bytes:
    if kind not in sound():
        pytest.skip("simplejpeg writes this subsampling, Pillow does not")
    return sound()[kind]


# The picture


@needs_build
@pytest.mark.parametrize("kind", SAMPLINGS)
@pytest.mark.parametrize(
    ("size", "scale", "median_db"),
    # Pillow rounds to whole levels before it resizes, and enlarged roundings do not average out.
    [(24, (0.3, 1.0), 52), (100, (0.2, 0.6), 52), (224, (0.05, 0.9), 50)],
    ids=["to a tenth", "about as large", "larger"],
)
@pytest.mark.parametrize("channels", [3, 1])
def test_regions_of_every_subsampling_have_pillows_picture(
    kind: str, size: int, scale: tuple[float, float], median_db: float, channels: int
) -> None:
    raw, crop = jpeg_of(kind), RandomResizedCrop(size, scale)
    found = []
    for seed in range(8):
        uniform = np.random.default_rng(seed).random(crop.num_uniforms)
        pixels = by_itself(raw, crop.box(WIDTH, HEIGHT, uniform), size, channels)
        found.append(psnr(pixels, decoded(PillowDecoder(channels), raw, crop, seed)))
    assert np.median(found) > median_db
    assert min(found) > LOWEST_DB


@needs_build
@pytest.mark.parametrize("kind", ["4:2:0", "4:4:4", "grey"])
@pytest.mark.parametrize(("size", "resize"), [(224, 256), (64, 64), (33, 47)])
def test_the_centre_is_that_of_resize_then_crop(kind: str, size: int, resize: int) -> None:
    raw = sound()[kind]
    image = Image.open(io.BytesIO(raw)).convert("RGB")
    short = min(image.size)
    wide, high = (int(resize * side / short) for side in image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    small = image.resize((wide, high), Image.Resampling.BILINEAR)
    expected = np.asarray(small.crop((left, top, left + size, top + size)))
    found = by_itself(raw, CenterCrop(size, resize).box(*image.size, np.empty(0)), size)
    assert psnr(found, expected) > 50


@needs_build
def test_a_region_a_quarter_of_a_pixel_off_would_be_noticed() -> None:
    raw, exact = sound()["4:2:0"], Box(40.0, 30.0, 140.0, 130.0)
    expected = decoded(PillowDecoder(), raw, Fixed(100, exact))
    moved = Box(*(edge + 0.25 for edge in exact))
    assert psnr(by_itself(raw, exact, 100), expected) > LOWEST_DB
    assert psnr(by_itself(raw, moved, 100), expected) < 40


@needs_build
@pytest.mark.parametrize("side", [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2", "4:4:4"])
def test_images_of_odd_sides_have_pillows_picture(side: int, subsampling: str) -> None:
    image = photo().resize((side, 2 * side + 1), Image.Resampling.LANCZOS)
    raw = encoded(image, quality=90, subsampling=subsampling)
    for box in (Cut(0, 0, side, 2 * side + 1), Box(side / 3, side / 2, side, 1.7 * side)):
        expected = decoded(PillowDecoder(), raw, Fixed(20, box))
        assert psnr(by_itself(raw, box, 20), expected) > LOWEST_DB


@needs_build
@pytest.mark.parametrize("level", [0, 1, 17, 128, 254, 255])
@pytest.mark.parametrize("size", [3, 40, 150])
def test_a_flat_area_keeps_its_level(level: int, size: int) -> None:
    raw = encoded(Image.new("L", (120, 90), level), quality=100)
    assert (by_itself(raw, Box(0, 0, 120, 90), size) == level).all()


@needs_build
@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)])
def test_colours_at_the_edge_of_the_gamut_do_not_wrap(colour: tuple[int, int, int]) -> None:
    raw = encoded(Image.new("RGB", (64, 64), colour), quality=100)
    found = by_itself(raw, Cut(3, 5, 60, 62), 20)
    assert np.abs(found.astype(int) - colour).max() <= 2  # JPEG rounds


@needs_build
def test_pixels_outside_a_cut_take_no_part() -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, 32:] = 255
    raw = encoded(Image.fromarray(pixels), quality=100)
    assert by_itself(raw, Cut(0, 0, 32, 32), 8).max() == 0
    # Four source pixels per output: the last column's triangle reaches 2 pixels over the edge,
    # with (1/8 + 3/8) / 4 of its weight.
    assert by_itself(raw, Box(0, 0, 32, 32), 8)[0, -1, 0] == round(255 / 8)


# Regions


@needs_build
@pytest.mark.parametrize("kind", ["4:2:0", "grey"])
@pytest.mark.parametrize(
    "box",
    [
        Box(-50, -30, 150, 170),
        Box(200, 100, 400, 300),
        Box(-100, -100, 500, 400),
        Box(-7.3, 20.2, 60.9, 88.4),
        Box(100, -500, 120, 600),
    ],
)
def test_what_lies_outside_the_image_is_black(kind: str, box: Box) -> None:
    raw = sound()[kind]
    found, expected = by_itself(raw, box, 64), decoded(PillowDecoder(), raw, Fixed(64, box))
    outside = (expected == 0).all(axis=2)
    assert outside.mean() > 0.05
    assert (found[outside] <= 2).all()
    assert psnr(found, expected) > LOWEST_DB


@needs_build
@pytest.mark.parametrize(
    "box", [Box(WIDTH, 0, WIDTH + 9, 9), Box(-9, 0, -1, 8), Box(0, 9e9, 5, 9.1e9)]
)
def test_a_region_wholly_outside_is_black(box: Box) -> None:
    assert (by_itself(sound()["4:2:0"], box, 16) == 0).all()


@needs_build
@pytest.mark.parametrize("place", [(0, 0), (150, 101), (WIDTH - 1, HEIGHT - 1)])
def test_a_cut_of_one_pixel_fills_the_sample_with_it(place: tuple[int, int]) -> None:
    x, y = place
    raw = sound()["4:4:4"]
    found = by_itself(raw, Cut(x, y, x + 1, y + 1), 9)
    assert (found == found[0, 0]).all()
    pixel = np.asarray(Image.open(io.BytesIO(raw)))[y, x]
    assert np.abs(found[0, 0].astype(int) - pixel).max() <= 1


SMALL_REGIONS = """
import io
import numpy as np
from PIL import Image
from resscale._native import jpeg

lines = np.random.default_rng(0).integers(0, 256, (64, 1, 1), dtype=np.uint8)
buffer = io.BytesIO()
Image.fromarray(np.tile(lines, (1, 64, 3))).save(buffer, "JPEG", quality=100)
whole = np.asarray(Image.open(io.BytesIO(buffer.getvalue()))).astype(int)
for top in range(60):
    for height in (1, 2, 3, 4, 5):
        out = np.zeros((height, height, 3), dtype=np.uint8)
        box = (8, top, 8 + height, top + height)
        assert jpeg.decode(buffer.getvalue(), *box, True, out) is None
        worst = abs(out - whole[top : top + height, 8 : 8 + height]).max()
        assert worst <= 4, (top, height, worst)
"""


@needs_build
@pytest.mark.parametrize("vectors", ["JSIMD_FORCESSE2", "JSIMD_FORCENONE"])
def test_regions_of_a_few_rows_have_the_right_ones_whatever_order_rows_are_written_in(
    vectors: str,
) -> None:
    """Libjpeg-turbo's vectors of older CPUs write rows 0, 2, 4, 6, 1, 3, 5, 7 of a block."""
    ended = subprocess.run(
        [sys.executable, "-c", SMALL_REGIONS],
        env={**os.environ, vectors: "1"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@needs_build
@pytest.mark.parametrize(
    "box",
    [
        Box(100, 100, 100 + 1e-9, 100 + 1e-9),
        Box(-1e300, -1e300, 1e300, 1e300),
        Box(-0.0001, 0, 1e-7, 3),
        Box(300.9999, 202.9999, 301.1, 203.1),
    ],
)
def test_absurd_regions_are_decoded_or_black(box: Box) -> None:
    raw = sound()["4:2:0"]
    found, expected = by_itself(raw, box, 21), decoded(PillowDecoder(), raw, Fixed(21, box))
    assert psnr(found, expected) > LOWEST_DB


@needs_build
def test_a_large_shrink_has_pillows_picture_and_a_huge_one_is_pillows() -> None:
    picture = Image.fromarray(load_sample_images().images[1]).resize((2400, 1600))
    raw, whole = encoded(picture, quality=90), Cut(0, 0, 2400, 1600)
    expected = decoded(PillowDecoder(), raw, Fixed(38, whole))  # 63 pixels become one
    assert psnr(by_itself(raw, whole, 38), expected) > 50
    out = np.zeros((37, 37, 3), np.uint8)  # 65 do
    assert jpeg.decode(raw, *whole, True, out) == "shrunk more than 64 times"


# Odd and damaged files


@needs_build
@pytest.mark.parametrize("kind", ["cmyk", "ycck", "rgb-jpeg", "png", "webp", "png-palette"])
def test_what_is_not_an_ordinary_jpeg_has_exactly_pillows_pixels(kind: str) -> None:
    crop = CenterCrop(40, 50)
    assert isinstance(jpeg.read_header(sound()[kind]), str)
    found, expected = (decoded(d(), sound()[kind], crop) for d in (NativeDecoder, PillowDecoder))
    assert np.array_equal(found, expected)


@needs_build
def test_a_cut_file_is_an_error_wherever_the_region_lies() -> None:
    top = Fixed(8, Cut(0, 0, 20, 10))  # the file ends far below it
    decoded(NativeDecoder(), sound()["4:2:0"], top)
    for kind in ("cut-at-50%", "cut-at-99%", "without-its-end", "progressive-cut-at-90%"):
        with pytest.raises(DecodeError, match="image file is truncated"):
            decoded(NativeDecoder(), damaged()[kind], top)


@needs_build
def test_the_extension_says_what_it_saw() -> None:
    out = np.zeros((8, 8, 3), np.uint8)
    cut = damaged()["cut-at-50%"]
    assert jpeg.decode(cut, *ALL, False, out) == "Premature end of JPEG file"
    marker = corrupt()["scan-ends-at-50%"]
    assert jpeg.decode(marker, *ALL, False, out) == (
        "Corrupt JPEG data: premature end of data segment"
    )
    assert jpeg.read_header(b"\x89PNG") == "not a JPEG"
    assert jpeg.read_header(b"") == "not a JPEG"


@needs_build
def test_bytes_between_good_segments_are_no_damage() -> None:
    raw = sound()["4:2:0"]
    out = np.zeros((8, 8, 3), np.uint8)
    assert jpeg.decode(raw[:-2] + bytes(5) + raw[-2:], *ALL, False, out) is None


@needs_build
def test_a_bomb_is_refused() -> None:
    with pytest.raises(DecodeError, match="more than 178956970 pixels: a decompression bomb"):
        decoded(NativeDecoder(), damaged()["bomb"], CenterCrop(8, 8))


@needs_build
def test_hundreds_of_scans_are_refused() -> None:
    raw = encoded(photo(), progressive=True)
    marker = b"\xff\xda"
    scans = [marker + scan for scan in raw.split(marker)[1:]]
    # Of three components, coefficients 0 to 0, the lowest bit alone: any number of times.
    again = next(scan for scan in scans if scan[4] == 3 and scan[11:14] == b"\x00\x00\x10")
    again = again[: again.find(b"\xff\xc4")]  # without the tables of the next scan
    decoded(NativeDecoder(), raw.replace(again, again * 80), CenterCrop(8, 8))
    with pytest.raises(DecodeError, match="more than 100 scans"):
        decoded(NativeDecoder(), raw.replace(again, again * 200), CenterCrop(8, 8))


@needs_build
def test_fractional_subsampling_is_left_to_pillow() -> None:
    raw = bytearray(sound()["4:4:4"])
    frame = raw.index(b"\xff\xc0")
    raw[frame + 11], raw[frame + 14] = 0x31, 0x21  # Y 3 × 1, Cb 2 × 1
    assert str(jpeg.read_header(raw)).startswith("fractional subsampling")


@needs_build
def test_a_jpeg_of_the_largest_side_is_decoded() -> None:
    raw = encoded(Image.new("L", (65500, 1), 200))
    assert (by_itself(raw, Cut(65000, 0, 65500, 1), 50) == 200).all()
    assert (decoded(NativeDecoder(), raw, Fixed(50, Cut(0, 0, 65500, 1))) == 200).all()


@needs_build
def test_the_narrowest_box_there_is_shows_the_pixel_it_lies_in() -> None:
    raw = encoded(Image.new("L", (40, 30), 200))
    box = Box(0.0, 0.0, 5e-324, 5e-324)  # 16 / 5e-324 is infinite
    assert (by_itself(raw, box, 16) == 200).all()
    assert (decoded(PillowDecoder(), raw, Fixed(16, box)) == 200).all()


# What it is given


@needs_build
@pytest.mark.parametrize(
    "out",
    [
        np.zeros((8, 9, 3), np.uint8),
        np.zeros((8, 8, 2), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
        np.zeros((8, 8, 3), np.int8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8, 3), bool),
    ],
    ids=lambda out: f"{out.shape} {out.dtype}",
)
def test_another_shape_or_type_is_refused(out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"out must be uint8 \(size, size, channels\)"):
        jpeg.decode(sound()["4:2:0"], *ALL, False, out)
    assert (out == 0).all()


@needs_build
def test_memory_that_cannot_be_written_in_a_row_is_refused() -> None:
    readonly = np.zeros((8, 8, 3), np.uint8)
    readonly.flags.writeable = False
    for out in (readonly, np.zeros((8, 16, 3), np.uint8)[:, ::2], bytes(192)):
        with pytest.raises((ValueError, BufferError), match=r"contiguous|read-only|writable"):
            jpeg.decode(sound()["4:2:0"], *ALL, False, out)


@needs_build
@pytest.mark.parametrize(
    "box",
    [(0, 0, 0, 9), (9, 0, 3, 9), (0, 0, math.nan, 9), (0, 0, math.inf, 9), (-1e308, 0, 1e308, 9)],
)
def test_an_empty_or_endless_region_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="the box must be finite"):
        jpeg.decode(sound()["4:2:0"], *box, False, np.zeros((8, 8, 3), np.uint8))


@needs_build
def test_any_buffer_of_bytes_is_read_and_nothing_else() -> None:
    raw, out = sound()["4:2:0"], np.zeros((8, 8, 3), np.uint8)
    for data in (raw, bytearray(raw), memoryview(raw), np.frombuffer(raw, np.uint8)):
        assert jpeg.read_header(data) == (WIDTH, HEIGHT)
        assert jpeg.decode(data, *ALL, False, out) is None
    with pytest.raises(TypeError):
        jpeg.read_header("text")
    with pytest.raises(TypeError):
        jpeg.decode(None, *ALL, False, out)


# Where it runs


@needs_build
def test_threads_give_equal_pixels() -> None:
    decoder, crop = NativeDecoder(), RandomResizedCrop(48)
    files = [raw for name, raw in sorted(sound().items()) if "png" not in name]
    jobs = [(raw, seed) for seed in range(6) for raw in files]
    expected = [decoded(decoder, raw, crop, seed) for raw, seed in jobs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: decoded(decoder, job[0], crop, job[1]), jobs))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_build
def test_a_copy_through_pickle_decodes_alike() -> None:
    decoder = NativeDecoder(1)
    copy = pickle.loads(pickle.dumps(decoder))
    crop = CenterCrop(40, 50)
    assert np.array_equal(
        decoded(copy, sound()["4:2:0"], crop), decoded(decoder, sound()["4:2:0"], crop)
    )


@needs_build
def test_the_module_tells_its_library() -> None:
    assert int(jpeg.LIBJPEG.split(".")[0]) >= 1


@needs_build
def test_one_build_serves_later_versions_of_python() -> None:
    origin = importlib.util.find_spec("resscale._native.jpeg").origin  # type: ignore[union-attr]
    assert origin is not None
    assert origin.endswith(".abi3.so")


# Where it is missing


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in place of the package's, without the extension."""
    monkeypatch.setitem(sys.modules, "resscale._native.jpeg", None)
    monkeypatch.delattr(_native, "jpeg", raising=False)
    monkeypatch.setattr(_native, "__path__", [str(tmp_path)])
    monkeypatch.setattr(decode_native, "why_not", why_not.__wrapped__)
    return tmp_path


def test_the_reason_of_the_build_is_told(not_built: Path) -> None:
    (not_built / "not_built.txt").write_text("no compiler; apt install gcc\n")
    assert decode_native.why_not() == (
        "the native decoder was not built: no compiler; apt install gcc"
    )
    assert not decode_native.is_available()


def test_without_a_reason_the_remedy_is_told(not_built: Path) -> None:
    assert "apt install gcc libjpeg-dev python3-dev" in str(decode_native.why_not())


@needs_build
def test_the_stub_names_what_the_module_has() -> None:
    stub = (Path(decode_native.__file__).parents[1] / "_native" / "jpeg.pyi").read_text()
    declared = set(re.findall(r"^(?:def |class )?(\w+)(?=\(|: )", stub, re.M))
    assert declared == {name for name in dir(jpeg) if not name.startswith("__")}
