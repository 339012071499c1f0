"""A table of samples to pack: what each is called, its label, and where its bytes lie."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from resscale.errors import DataFormatError

MAX_KEY_LENGTH = 80  # a ustar member name has room for 100 bytes, with its extension
WHOLE_FILE = -1
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


class SampleRef(NamedTuple):
    """Where one sample's bytes lie: `size` bytes at `offset` of `path`, or the whole file.

    `raw` holds them where they are in memory already.
    """

    key: str
    label: int
    path: str
    offset: int
    size: int
    raw: bytes | None = None

    @property
    def place(self) -> str:
        """The source in words, for lists that people read."""
        return self.path if self.offset == WHOLE_FILE else f"{self.path} at byte {self.offset}"


@dataclass(frozen=True)
class SampleTable:
    """Samples of one split as arrays, about 100 bytes each: 1.28 million take 130 MB.

    Args:
        keys: unique WebDataset keys, `S` array (n,).
        labels: class numbers, int64 (n,).
        containers: the folders or archives that hold the samples.
        container_ids: `containers[container_ids[i]]` holds sample i, int32 (n,).
        names: file name below the container, `S` array (n,); empty where the container is a file.
        offsets: first byte in the container, int64 (n,); -1 where the sample is a whole file
            or lies in `pixels`.
        sizes: bytes in the source, int64 (n,).
        pixel_shape: (height, width) where the bytes are raw gray pixels, (3, height, width) for
            planes of red, green and blue; None for image files.
        pixels: raw pixels, uint8 (n, bytes per image), where they are not read in place; a worker
            is sent its rows.
    """

    keys: npt.NDArray[np.bytes_]
    labels: npt.NDArray[np.int64]
    containers: tuple[str, ...]
    container_ids: npt.NDArray[np.int32]
    names: npt.NDArray[np.bytes_]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    pixel_shape: tuple[int, ...] | None = None
    pixels: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def refs(self, rows: npt.NDArray[np.int64]) -> list[SampleRef]:
        """Return the samples of these rows as tuples, ready to be sent to a worker."""
        columns = (self.keys, self.labels, self.container_ids, self.names, self.offsets, self.sizes)
        raws: list[bytes | None] = [None] * len(rows)
        if self.pixels is not None:
            raws = [image.tobytes() for image in self.pixels[rows]]
        return [
            SampleRef(key.decode(), label, self._path(container, name), offset, size, raw)
            for key, label, container, name, offset, size, raw in zip(
                *(column[rows].tolist() for column in columns), raws, strict=True
            )
        ]

    def _path(self, container: int, name: bytes) -> str:
        folder = self.containers[container]
        return f"{folder}/{os.fsdecode(name)}" if name else folder


@dataclass(frozen=True)
class Split:
    """One split of a data set: its folder name, its samples, the class names by label."""

    name: str
    samples: SampleTable
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def samples_in_file(
    path: str,
    keys: Iterable[str],
    labels: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    pixel_shape: tuple[int, ...] | None = None,
) -> SampleTable:
    """Return the table of samples that all lie in one file."""
    return SampleTable(
        keys=bytes_array([key.encode() for key in keys]),
        labels=labels,
        containers=(path,),
        container_ids=np.zeros(len(labels), np.int32),
        names=np.zeros(len(labels), "S1"),
        offsets=offsets,
        sizes=sizes,
        pixel_shape=pixel_shape,
    )


def samples_in_memory(
    path: str,
    keys: Iterable[str],
    labels: npt.NDArray[np.int64],
    pixels: npt.NDArray[np.uint8],
    pixel_shape: tuple[int, ...],
) -> SampleTable:
    """Return the table of samples whose raw pixels, uint8 (n, bytes), were read out of `path`."""
    count, size = pixels.shape
    table = samples_in_file(
        path,
        keys,
        labels,
        offsets=np.full(count, WHOLE_FILE, np.int64),
        sizes=np.full(count, size, np.int64),
        pixel_shape=pixel_shape,
    )
    return replace(table, pixels=pixels)


def bytes_array(items: list[bytes]) -> npt.NDArray[np.bytes_]:
    """Return an `S` array, as wide as the longest item (at least 1)."""
    return np.array(items, dtype=np.bytes_) if items else np.empty(0, "S1")


def sample_key(class_name: str, relative: str) -> str:
    """Return the key of a file of a class: `class_stem`, without dots and slashes.

    Stems that begin with the class (`n01440764_10026`) stand alone; whatever is not a letter,
    digit, `_` or `-` becomes `_`; a long key keeps its beginning and gets a digest of the whole.
    """
    stem = os.path.splitext(relative)[0]  # noqa: PTH122 - keeps folders as they are
    if not stem.startswith(class_name + "_"):
        stem = f"{class_name}_{stem}"
    key = _UNSAFE.sub("_", stem)
    return key if len(key) <= MAX_KEY_LENGTH else key[: MAX_KEY_LENGTH - 9] + _digest(stem)


def unique_keys(keys: list[str], identities: Sequence[str]) -> npt.NDArray[np.bytes_]:
    """Return the keys as an array; of equal ones, all but the first get a digest of their path.

    Args:
        keys: keys, some perhaps equal.
        identities: what tells the samples apart (their paths), in the same order.

    Raises:
        DataFormatError: two samples have the same path.
    """
    array = bytes_array([key.encode() for key in keys])
    _, first, inverse = np.unique(array, return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(array)))
    if not len(repeated):
        return array
    renamed = list(keys)
    for row in repeated.tolist():
        renamed[row] = keys[row][: MAX_KEY_LENGTH - 9] + _digest(identities[row])
    array = bytes_array([key.encode() for key in renamed])
    if len(np.unique(array)) != len(array):
        raise DataFormatError(
            f"Samples like {identities[int(repeated[0])]!r} cannot be given unique keys: two have "
            f"the same path. Remove the repeated entry from the source."
        )
    return array


def _digest(identity: str) -> str:
    raw = identity.encode("utf-8", "surrogateescape")
    return "-" + hashlib.blake2b(raw, digest_size=4).hexdigest()
