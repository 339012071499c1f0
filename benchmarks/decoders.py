"""Decoders side by side: CPU time per image, and how near their pictures come to Pillow's.

    OMP_NUM_THREADS=1 python benchmarks/decoders.py PHOTOS
    OMP_NUM_THREADS=1 python benchmarks/decoders.py PHOTOS --images 1000 --rounds 7 --size 160

PHOTOS is a folder of benchmarks/photos.py: JPEGs with the sizes of ImageNet's. They are taken as
they are, with a longer side of 500 pixels (as ffcv stores them), and with a shorter side of 320, as
`resscale pack --resize 320` writes them. Each image is decoded by all decoders one after the other,
at the same region of RandomResizedCrop, straight from memory into the same array; the next round
begins with another decoder. Times are CPU seconds of the process, one thread: the median of an
image's rounds, in the mean over images. The first round is left out. PSNR is against Pillow on the
same regions, and for the centre against resizing the whole image to 256 / 224 of the size, then
cutting.
"""

from __future__ import annotations

import argparse
import datetime
import io
import math
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from resscale.data.augment import CenterCrop, Crop, RandomResizedCrop
from resscale.data.decode import Decoder, Pixels
from resscale.data.decoders import build_decoder, describe_decoder, why_not
from resscale.data.pack_images import ImageRules, prepare_image

NAMES = ("pillow", "native", "nvimgcodec", "simplejpeg")
SETS = {"originals": "originals", "500 px": "side500", "320 px": "originals"}
_SHORT_SIDE = 320


@dataclass(frozen=True)
class Row:
    """What one decoder did with one set of images.

    Args:
        name: of the decoder.
        cpu_ms: per image.
        psnr_db: of each region against Pillow's picture, (images,); infinite where equal.
        centre_db: of each centre against the picture of two steps, (images,).
    """

    name: str
    cpu_ms: float
    psnr_db: npt.NDArray[np.float64]
    centre_db: npt.NDArray[np.float64]


def psnr(one: Pixels, other: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two pictures in dB, infinite for equal ones."""
    error = float(((one.astype(np.float64) - other.astype(np.float64)) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def turned(names: Sequence[str], round_number: int) -> list[str]:
    """Return the decoders in the order of a round: each begins as often as any other."""
    first = round_number % len(names)
    return [*names[first:], *names[:first]]


def mean_of_medians(times_ns: npt.NDArray[np.int64]) -> float:
    """Return milliseconds per image of times in nanoseconds, (rounds, images)."""
    return float(np.median(times_ns, axis=0).mean()) / 1e6


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table; the first row is the reference of the ratios."""
    lines = [
        "| decoder | CPU ms per image | × Pillow | images/s per core "
        "| PSNR, median / 5th percentile (dB) | centre, the same (dB) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        share = row.cpu_ms / rows[0].cpu_ms
        lines.append(
            f"| {row.name} | {row.cpu_ms:.2f} | {share:.2f} | {1000 / row.cpu_ms:,.0f} "
            f"| {_spread(row.psnr_db)} | {_spread(row.centre_db)} |"
        )
    return "\n".join(lines)


def _spread(values_db: npt.NDArray[np.float64]) -> str:
    low = float(np.quantile(values_db, 0.05, method="lower"))
    middle = float(np.quantile(values_db, 0.5, method="lower"))
    return " / ".join("equal" if math.isinf(value) else f"{value:.1f}" for value in (middle, low))


def two_steps(data: bytes, size: int, resize: int) -> Pixels:
    """Return Resize(resize) and then CenterCrop(size) of Pillow: uint8 (size, size, 3)."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    wide, high = (int(resize * side / short) for side in image.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    small = image.resize((wide, high), Image.Resampling.BILINEAR)
    return np.asarray(small.crop((left, top, left + size, top + size)))


def read_photos(folder: Path, name: str, count: int) -> list[bytes]:
    """Return the files of a set, at most `count`.

    Raises:
        SystemExit: the folder holds none.
    """
    files = sorted((folder / SETS[name]).rglob("*.jpg"))[:count]
    if not files:
        raise SystemExit(f"{folder / SETS[name]} holds no .jpg; make some: benchmarks/photos.py")
    raw = [file.read_bytes() for file in files]
    if name != "320 px":
        return raw
    return [prepare_image(data, ImageRules(resize=_SHORT_SIDE))[1] for data in raw]


def measure(names: Sequence[str], photos: Sequence[bytes], size: int, rounds: int) -> list[Row]:
    """Decode all photos by all decoders, interleaved; return a row each, in the order given."""
    crop, centre = RandomResizedCrop(size), CenterCrop(size, size * 256 // 224)
    decoders = {name: build_decoder(name) for name in names}
    uniforms = np.random.default_rng(0).random((len(photos), crop.num_uniforms))
    times = {name: np.zeros((rounds + 1, len(photos)), np.int64) for name in names}
    pictures = {name: np.zeros((size, size, 3), np.uint8) for name in names}
    quality: dict[str, list[float]] = {name: [] for name in names}
    centres: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(rounds + 1):
        for number, data in enumerate(photos):
            for name in turned(names, round_number):
                times[name][round_number, number] = _timed(
                    decoders[name], data, crop, uniforms[number], pictures[name]
                )
            if round_number == 0:
                for name in names:
                    quality[name].append(psnr(pictures[name], pictures[names[0]]))
    for data in photos:
        expected = two_steps(data, size, centre.resize)
        for name in names:
            decoders[name].decode(data, centre, uniforms[0], pictures[name])
            centres[name].append(psnr(pictures[name], expected))
    return [
        Row(
            name,
            mean_of_medians(times[name][1:]),
            np.array(quality[name]),
            np.array(centres[name]),
        )
        for name in names
    ]


def _timed(
    decoder: Decoder, data: bytes, crop: Crop, uniform: npt.NDArray[np.float64], out: Pixels
) -> int:
    began = time.process_time_ns()
    decoder.decode(data, crop, uniform, out)
    return time.process_time_ns() - began


def cpu_name() -> str:
    """Return the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and print a table for each set."""
    parser = argparse.ArgumentParser(description="Decoders side by side.")
    parser.add_argument("photos", type=Path, help="a folder of benchmarks/photos.py")
    parser.add_argument("--images", type=int, default=300, help="of each set (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--size", type=int, default=224, help="of the result (%(default)s)")
    parser.add_argument("--decoders", nargs="*", default=NAMES, help="first the reference")
    options = parser.parse_args(arguments)
    names = [name for name in options.decoders if why_not(name) is None]
    for name in options.decoders:
        print(f"{name}: {why_not(name) or describe_decoder(name)}")
    words = " ".join(sys.argv[1:] if arguments is None else arguments)
    print(f"\n`python benchmarks/decoders.py {words}`")
    print(f"{datetime.date.today()}, {cpu_name()}, one thread\n")
    for name in SETS:
        photos = read_photos(options.photos, name, options.images)
        rows = measure(names, photos, options.size, options.rounds)
        mean_kb = sum(map(len, photos)) / len(photos) / 1000
        print(f"{name}: {len(photos)} images of {mean_kb:.0f} kB\n\n{table(rows)}\n", flush=True)


if __name__ == "__main__":
    main()
