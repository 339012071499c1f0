"""MNIST-format files (`idx`): MNIST, Fashion-MNIST and their like, gzipped or not."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resscale.data.pack_samples import Split, samples_in_file
from resscale.errors import DataFormatError

_IMAGE_HEADER_BYTES = 16
_SPLITS = {"train": "train", "test": "t10k"}
_UBYTE = 0x08


def idx_splits(source: Path, class_names: tuple[str, ...] = ()) -> list[Split]:
    """Return the splits `train` and `test` (`t10k-*`), those that `source` holds.

    Args:
        source: folder of `train-images-idx3-ubyte[.gz]`, `train-labels-idx1-ubyte[.gz]`, `t10k-…`.
        class_names: names by label; the digits of the label where empty.

    Raises:
        DataFormatError: no such files, a damaged one, or counts that differ.
    """
    splits = []
    for name, prefix in _SPLITS.items():
        images, labels = _find(source, f"{prefix}-images"), _find(source, f"{prefix}-labels")
        if images is None and labels is None:
            continue
        if images is None or labels is None:
            missing = f"{prefix}-labels-idx1" if images else f"{prefix}-images-idx3"
            raise DataFormatError(
                f"{source} holds one file of the split {name} only: "
                f"{missing}-ubyte[.gz] is needed beside it."
            )
        splits.append(_split(name, images, labels, class_names))
    if not splits:
        raise DataFormatError(
            f"{source} holds no MNIST-format files: train-images-idx3-ubyte[.gz] and "
            f"train-labels-idx1-ubyte[.gz] (or t10k-…) are needed. Name the folder they lie in."
        )
    return splits


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzipped or not, as an array of its shape.

    Raises:
        DataFormatError: another type, damaged, or not as long as its header says.
    """
    raw = read_maybe_gzipped(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _UBYTE or not raw[3]:
        raise DataFormatError(
            f"{path} begins with {raw[:4].hex(' ') or 'nothing'}; an idx file of unsigned bytes "
            f"begins with 00 00 08 and its number of dimensions. Download it again."
        )
    header = 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:header], ">u4").tolist())
    if len(shape) != raw[3] or len(raw) - header != int(np.prod(shape, dtype=np.int64)):
        raise DataFormatError(
            f"{path} is damaged: its header promises the shape {shape}, "
            f"{max(0, len(raw) - header)} bytes follow. Download it again."
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_maybe_gzipped(path: Path) -> bytes:
    """Read a file, unpacked where its name ends in `.gz`.

    Raises:
        DataFormatError: it cannot be read or unpacked.
    """
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataFormatError(f"{path} cannot be read ({error}). Download it again.") from error


def _find(source: Path, stem: str) -> Path | None:
    dimensions = "idx3" if stem.endswith("images") else "idx1"
    for name in (f"{stem}-{dimensions}-ubyte", f"{stem}.{dimensions}-ubyte"):
        for suffix in ("", ".gz"):
            if (path := source / (name + suffix)).is_file():
                return path
    return None


def _split(name: str, images: Path, labels: Path, class_names: tuple[str, ...]) -> Split:
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.ndim != 1 or len(pixels) != len(classes):
        raise DataFormatError(
            f"{images.name} has the shape {pixels.shape}, {labels.name} {classes.shape}: "
            f"(n, height, width) and (n,) are needed. Download the pair again."
        )
    num_classes = int(classes.max()) + 1 if len(classes) else 0
    if class_names and len(class_names) < num_classes:
        raise DataFormatError(
            f"{labels.name} has labels up to {num_classes - 1}, but only {len(class_names)} class "
            f"names are given; one name per label is needed."
        )
    count, height, width = pixels.shape
    samples = samples_in_file(
        str(images),
        keys=(f"{name}-{row:06d}" for row in range(count)),
        labels=classes.astype(np.int64),
        offsets=_IMAGE_HEADER_BYTES + np.arange(count, dtype=np.int64) * (height * width),
        sizes=np.full(count, height * width, np.int64),
        pixel_shape=(height, width),
    )
    return Split(name, samples, class_names or tuple(str(n) for n in range(num_classes)))
