"""Feeds damaged JPEGs and absurd regions to the native decoder, built with sanitizers.

    python benchmarks/fuzz_native.py --inputs 1000000
    python benchmarks/fuzz_native.py --first 4711 --inputs 1

The C sources of the decoder are built with gcc's AddressSanitizer and UndefinedBehaviorSanitizer,
beside a small program that decodes a stream of inputs (fuzz_native.c). Input N is a function of
the seed and N: real JPEGs with bytes flipped, cut, spliced, repeated, or with other sizes, sampling
factors and tables in their headers, and a region that may lie anywhere. Memory that is read or
written out of bounds, used after it is freed, leaked, or arithmetic that is undefined, is a
finding: the program ends, its input is named, and this script ends with code 1. Needs gcc,
libjpeg's headers, and Pillow, numpy and scikit-learn for the photographs.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent / "src" / "resscale" / "_native"
SANITIZE = (
    "-g", "-O1", "-fno-omit-frame-pointer", "-DRS_ONE_VERSION",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip
OUTCOMES = ("decoded", "left to Pillow", "refused", "out of memory")
_BATCH = 1000
_SIZE_MARKERS = (b"\xff\xc0", b"\xff\xc2")
_TABLE_MARKERS = (b"\xff\xc4", b"\xff\xdb", b"\xff\xda", b"\xff\xdd", b"\xff\xee")


@dataclasses.dataclass(frozen=True)
class Input:
    """One call of the decoder: a file, and what of it to decode.

    Args:
        data: the file.
        box: left, top, right, bottom in pixels; finite, not empty.
        cut: whether pixels outside take no part.
        side: of the result in pixels.
        channels: 1 or 3.
    """

    data: bytes
    box: tuple[float, float, float, float]
    cut: bool
    side: int
    channels: int

    def packed(self) -> bytes:
        """Return what fuzz_native.c reads."""
        head = struct.pack(
            "=4d4I", *self.box, len(self.data), self.side, self.channels, int(self.cut)
        )
        return head + self.data


@functools.cache
def originals() -> tuple[bytes, ...]:
    """Return small real JPEGs of all kinds: samplings, grey, progressive, restarts, CMYK, odd."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    kinds: list[tuple[tuple[int, int], str, dict[str, object]]] = [
        ((96, 64), "RGB", {"subsampling": "4:2:0"}),
        ((61, 83), "RGB", {"subsampling": "4:2:0", "quality": 40}),
        ((70, 50), "RGB", {"subsampling": "4:2:2"}),
        ((33, 47), "RGB", {"subsampling": "4:4:4"}),
        ((64, 48), "RGB", {"progressive": True}),
        ((40, 56), "RGB", {"progressive": True, "subsampling": "4:4:4", "quality": 95}),
        ((80, 40), "RGB", {"restart_marker_rows": 1}),
        ((57, 31), "L", {}),
        ((48, 48), "L", {"progressive": True}),
        ((32, 32), "CMYK", {}),
        ((24, 24), "RGB", {"keep_rgb": True}),
        ((1, 1), "RGB", {}),
        ((3, 120), "RGB", {}),
        ((150, 2), "RGB", {"optimize": True}),
    ]
    files = []
    for number, (size, mode, options) in enumerate(kinds):
        buffer = io.BytesIO()
        part = photos[number % 2].crop((100, 50, 400, 350)).resize(size).convert(mode)
        part.save(buffer, "JPEG", **options)
        files.append(buffer.getvalue())
    return tuple(files)


def mutate(rng: np.random.Generator, files: Sequence[bytes]) -> bytes:
    """Return one of the files with up to four kinds of damage; one in thirty has none."""
    raw = bytearray(files[int(rng.integers(len(files)))])
    if rng.random() < 1 / 30:
        return bytes(raw)
    for _ in range(int(rng.integers(1, 5))):
        kind = int(rng.integers(len(_DAMAGES)))
        raw = _DAMAGES[kind](rng, raw, files)
    return bytes(raw)


def _flip(rng: np.random.Generator, raw: bytearray, files: Sequence[bytes]) -> bytearray:
    for _ in range(int(rng.integers(1, 12))):
        if raw:
            raw[int(rng.integers(len(raw)))] = int(rng.integers(256))
    return raw


def _flip_bit(rng: np.random.Generator, raw: bytearray, files: Sequence[bytes]) -> bytearray:
    if raw:
        raw[int(rng.integers(len(raw)))] ^= 1 << int(rng.integers(8))
    return raw


def _truncate(rng: np.random.Generator, raw: bytearray, files: Sequence[bytes]) -> bytearray:
    end = bytearray(b"\xff\xd9") if rng.random() < 0.5 else bytearray()
    return raw[: int(rng.integers(len(raw) + 1))] + end


def _splice(rng: np.random.Generator, raw: bytearray, files: Sequence[bytes]) -> bytearray:
    other = files[int(rng.integers(len(files)))]
    at, start = int(rng.integers(len(raw) + 1)), int(rng.integers(len(other)))
    stop = min(len(other), start + int(rng.integers(1, 1500)))
    skip = int(rng.integers(200)) if rng.random() < 0.5 else 0
    return raw[:at] + bytearray(other[start:stop]) + raw[at + skip :]


def _repeat(rng: np.random.Generator, raw: bytearray, files: Sequence[bytes]) -> bytearray:
    at, length = int(rng.integers(len(raw) + 1)), int(rng.integers(1, 300))
    return raw[: at + length] + raw[at : at + length] * int(rng.integers(1, 4)) + raw[at + length :]


def _remove(rng: np.random.Generator, raw: bytearray, files: Sequence[bytes]) -> bytearray:
    at = int(rng.integers(len(raw) + 1))
    return raw[:at] + raw[at + int(rng.integers(1, 100)) :]


def _resize(rng: np.random.Generator, raw: bytearray, files: Sequence[bytes]) -> bytearray:
    """Another size, or other sampling factors and components, in the frame's header."""
    found = max(bytes(raw).find(marker) for marker in _SIZE_MARKERS)
    if found < 0 or found + 20 > len(raw):
        return raw
    if rng.random() < 0.5:
        most = 65536 if rng.random() < 0.02 else 300
        raw[found + 5 : found + 9] = struct.pack(">2H", *rng.integers(0, most, size=2).tolist())
    else:
        raw[found + 9 + int(rng.integers(10))] = int(
            rng.choice([0, 1, 2, 3, 4, 17, 18, 33, 34, 68])
        )
    return raw


def _tables(rng: np.random.Generator, raw: bytearray, files: Sequence[bytes]) -> bytearray:
    """A byte of a table's or scan's header."""
    marker = _TABLE_MARKERS[int(rng.integers(len(_TABLE_MARKERS)))]
    found = bytes(raw).find(marker)
    if 0 <= found < len(raw) - 2:
        at = min(len(raw) - 1, found + 2 + int(rng.integers(24)))
        raw[at] = int(rng.integers(256))
    return raw


_DAMAGES = (_flip, _flip_bit, _truncate, _splice, _repeat, _remove, _resize, _tables)


def draw_box(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Return a region: usual, touching the edges, far outside, tiny or huge."""
    kind = int(rng.integers(5))
    if kind == 0:
        left, top = (int(n) for n in rng.integers(0, 60, size=2))
        wide, high = (int(n) for n in rng.integers(1, 90, size=2))
        return (left, top, left + wide, top + high)
    scale = (90.0, 300.0, 1e5, 1e300)[kind - 1]
    left, top = rng.uniform(-scale / 3, scale, size=2).tolist()
    small = 10.0 ** rng.uniform(-6, 0)
    wide, high = (rng.uniform(0, scale, size=2) * small + 1e-9).tolist()
    right, bottom = (
        max(left + wide, np.nextafter(left, np.inf)),
        max(top + high, np.nextafter(top, np.inf)),
    )
    return (left, top, float(right), float(bottom))


def draw_input(seed: int, number: int) -> Input:
    """Return input `number` of `seed`."""
    rng = np.random.default_rng((seed, number))
    return Input(
        data=mutate(rng, originals()),
        box=draw_box(rng),
        cut=bool(rng.random() < 0.5),
        side=int(rng.integers(1, 65)),
        channels=1 if rng.random() < 0.25 else 3,
    )


def build(folder: Path) -> Path:
    """Compile the decoder and the program around it with sanitizers; return the program."""
    program = folder / "fuzz_native"
    parts = [str(SOURCES / f"{name}.c") for name in ("decode", "resize", "taps")]
    subprocess.run(
        ["gcc", *SANITIZE, "-I", str(SOURCES), str(HERE / "fuzz_native.c"), *parts,
         "-o", str(program), "-ljpeg", "-lm"],
        check=True,
    )  # fmt: skip
    return program


def run_batch(program: Path, seed: int, numbers: range) -> tuple[list[int], str | None]:
    """Decode some inputs in one process.

    Returns:
        How many came to each of OUTCOMES, and what the sanitizers said, None where nothing.
    """
    stream = b"".join(draw_input(seed, number).packed() for number in numbers)
    options = "allocator_may_return_null=1:detect_leaks=1"
    done = subprocess.run(
        [str(program)],
        input=stream,
        capture_output=True,
        env={**os.environ, "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    if done.returncode == 0:
        return [int(word) for word in done.stdout.split()[: len(OUTCOMES)]], None
    return [0] * len(OUTCOMES), f"exit code {done.returncode}\n{done.stderr.decode()[-4000:]}"


def culprit(program: Path, seed: int, numbers: range) -> int | None:
    """Return the first input that is a finding by itself, None where none of them is."""
    for number in numbers:
        if run_batch(program, seed, range(number, number + 1))[1]:
            return number
    return None


def main() -> int:
    """Read the command line, decode all inputs, and return 1 where something was found."""
    parser = argparse.ArgumentParser(description="The native decoder against damaged files.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    options = parser.parse_args()
    counts, began, findings = np.zeros(len(OUTCOMES), np.int64), time.monotonic(), 0
    end = options.first + options.inputs
    with tempfile.TemporaryDirectory() as folder:
        program = build(Path(folder))
        for first in range(options.first, end, _BATCH):
            numbers = range(first, min(end, first + _BATCH))
            outcome, said = run_batch(program, options.seed, numbers)
            counts += outcome
            if said:
                findings += 1
                print(f"FINDING at input {culprit(program, options.seed, numbers)}: {said}")
            if (first - options.first) % (20 * _BATCH) == 0 or numbers.stop == end:
                words = ", ".join(f"{n:,} {what}" for n, what in zip(counts, OUTCOMES, strict=True))
                print(
                    f"{numbers.stop - options.first:,} inputs in "
                    f"{time.monotonic() - began:,.0f} s: {words}; {findings} findings",
                    flush=True,
                )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
