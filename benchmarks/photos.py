"""Makes JPEGs out of real photographs, with the sizes that ImageNet's have.

    python benchmarks/photos.py OUT
    python benchmarks/photos.py OUT --count 512 --seed 1

Needs numpy, Pillow, opencv-python-headless, scikit-image and scikit-learn, which the environment
`data` of benchmarks/make_peers.py has. The photographs are those that scikit-learn and scikit-image
carry. Regions of them at random are brought to sizes that ImageNet has, mirrored where they are too
small, so that they keep their detail. Grain is added, and the quality chosen that meets a number of
bytes. ImageNet: 111 kB in the mean, 500x375 pixels in the median, few above a megapixel, and one in
a hundred that is odd: grey, CMYK, progressive, or a PNG called .jpg.

    OUT/originals/<class>/<number>.jpg
    OUT/side500/<class>/<number>.jpg    longer side 500 at most, quality 90, as ffcv's writer makes
                                        them of the originals with max_resolution=500
"""

from __future__ import annotations

import argparse
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Image8 = npt.NDArray[np.uint8]

NUM_CLASSES = 16
ODD_KINDS = ("grey", "progressive", "cmyk", "png")
_ODD_SHARE = 0.01
# Share of the images, shape as width : height at a longer side of 500.
_SHAPES = ((0.42, 500, 375), (0.22, 500, 333), (0.14, 375, 500), (0.12, 333, 500), (0.10, 500, 500))
_SMALL, _LARGE = 0.12, 0.06
_MEDIAN_BITS, _SPREAD_BITS = 4.3, 0.45
# Large pictures on the web are compressed more.
_MOST_BYTES = 900_000
_SKIMAGE = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "immunohistochemistry",
    "hubble_deep_field",
    "retina",
)


def draw_size(rng: np.random.Generator) -> tuple[int, int]:
    """Return a width and a height in pixels, as ImageNet has them."""
    shares = [share for share, _, _ in _SHAPES]
    _, width, height = _SHAPES[int(rng.choice(len(_SHAPES), p=shares))]
    kind = rng.random()
    if kind < _SMALL:
        scale = rng.uniform(0.25, 0.95)
    elif kind < _SMALL + _LARGE:
        scale = min(6.0, 1.2 + rng.exponential(0.8))
    else:
        scale = 1.0
    return max(32, round(width * scale)), max(32, round(height * scale))


def odd_kind(number: int, count: int) -> str | None:
    """Return what is odd about image `number` of `count`: one in a hundred, all kinds in turn."""
    every = round(1 / _ODD_SHARE)
    if number % every != every // 2:
        return None
    return ODD_KINDS[number // every % len(ODD_KINDS)]


def fit_quality(sizes: Sequence[tuple[int, int]], wanted_bytes: float) -> int:
    """Return the quality, of the (quality, bytes) that were tried, which comes nearest."""
    return min(sizes, key=lambda tried: abs(tried[1] - wanted_bytes))[0]


def photographs() -> list[Image8]:
    """Return the photographs that the installed packages carry: uint8 (height, width, 3)."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    found = [np.asarray(image) for image in load_sample_images().images]
    for name in _SKIMAGE:
        try:
            picture = getattr(skimage.data, name)()
        # Some lie on a server, and the loader raises whatever its downloader does.
        except Exception:
            continue
        if picture.ndim == 3:
            found.append(np.asarray(picture[:, :, :3], np.uint8))
    return found


def make_photo(rng: np.random.Generator, sources: list[Image8]) -> Image8:
    """Return one picture: a region of a photograph at a drawn size, uint8 (height, width, 3)."""
    import cv2

    width, height = draw_size(rng)
    source = sources[int(rng.integers(len(sources)))]
    # How many pixels of the source become one of the picture.
    scale = rng.uniform(0.75, 1.6)
    need_x, need_y = round(width * scale), round(height * scale)
    pad_x, pad_y = max(0, need_x - source.shape[1]), max(0, need_y - source.shape[0])
    if pad_x or pad_y:
        source = np.pad(source, ((0, pad_y), (0, pad_x), (0, 0)), mode="symmetric")
    left = int(rng.integers(source.shape[1] - need_x + 1))
    top = int(rng.integers(source.shape[0] - need_y + 1))
    region = np.ascontiguousarray(source[top : top + need_y, left : left + need_x])
    if rng.random() < 0.5:
        region = np.ascontiguousarray(region[:, ::-1])
    picture = cv2.resize(region, (width, height), interpolation=cv2.INTER_AREA)
    grain = rng.normal(0, rng.uniform(0.5, 5), (height, width, 1)).astype(np.float32)
    light = np.float32(rng.uniform(0.8, 1.15))
    return np.clip(picture * light + grain, 0, 255).astype(np.uint8)


def encode_photo(rng: np.random.Generator, picture: Image8, odd: str | None) -> bytes:
    """Return the file of a picture, with a drawn number of bits per pixel."""
    from PIL import Image

    image = Image.fromarray(picture)
    if odd == "png":
        return _encoded(image, "PNG")
    if odd in ("grey", "cmyk"):
        image = image.convert("L" if odd == "grey" else "CMYK")
    options: dict[str, Any] = {"progressive": odd == "progressive"}
    if odd != "grey":
        options["subsampling"] = 2 if rng.random() < 0.75 else 0
    bits = _MEDIAN_BITS * float(np.exp(rng.normal(0, _SPREAD_BITS)))
    wanted = min(_MOST_BYTES, bits * image.width * image.height / 8)
    tried: list[tuple[int, int]] = []
    low, high = 60, 98
    while low <= high:
        quality = (low + high) // 2
        tried.append((quality, len(_encoded(image, "JPEG", quality=quality, **options))))
        low, high = (quality + 1, high) if tried[-1][1] < wanted else (low, quality - 1)
    return _encoded(image, "JPEG", quality=fit_quality(tried, wanted), **options)


def shrunk_to_500(data: bytes) -> bytes:
    """Return an image with a longer side of 500 pixels at most, as ffcv's writer stores it."""
    import cv2
    from PIL import Image

    picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    size = np.array([picture.shape[1], picture.shape[0]])
    ratio = 500 / size.max()
    if ratio < 1:
        wide, high = (ratio * size).astype(int).tolist()
        picture = cv2.resize(picture, (wide, high), interpolation=cv2.INTER_AREA)
    turned = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", turned, [int(cv2.IMWRITE_JPEG_QUALITY), 90])
    return encoded.tobytes()


def make_photos(out: Path, count: int, seed: int) -> str:
    """Write the pictures; return in one line what they came to."""
    sources = photographs()
    sizes: list[int] = []
    shapes: list[tuple[int, int]] = []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        picture = make_photo(rng, sources)
        data = encode_photo(rng, picture, odd_kind(number, count))
        name = f"class{number % NUM_CLASSES:02d}/{number:06d}.jpg"
        for folder, content in (("originals", data), ("side500", shrunk_to_500(data))):
            path = out / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        sizes.append(len(data))
        shapes.append((picture.shape[1], picture.shape[0]))
    return describe(sizes, shapes, len(sources))


def describe(sizes: Sequence[int], shapes: Sequence[tuple[int, int]], sources: int) -> str:
    """Return number, bytes and pixels of the pictures in words."""
    wide = statistics.median(width for width, _ in shapes)
    high = statistics.median(height for _, height in shapes)
    large = sum(width * height > 1_000_000 for width, height in shapes)
    return (
        f"{len(sizes)} images of {sources} photographs: mean {statistics.mean(sizes) / 1000:.0f} "
        f"kB, median {wide:.0f}x{high:.0f} pixels, {large} above a megapixel"
    )


def _encoded(image: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def main() -> None:
    """Read the command line, write the pictures, and say what they are."""
    parser = argparse.ArgumentParser(description="JPEGs with ImageNet's sizes.")
    parser.add_argument("out", type=Path, help="a folder; what it holds is overwritten")
    parser.add_argument("--count", type=int, default=3072, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    options = parser.parse_args()
    print(make_photos(options.out, options.count, options.seed))


if __name__ == "__main__":
    main()
