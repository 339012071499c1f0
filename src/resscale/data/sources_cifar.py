"""CIFAR-10 and CIFAR-100 as they are downloaded or extracted, python version or binary version.

An image is 3072 bytes: the red plane, the green and the blue, each of 32 rows of 32. Both versions
give the same keys, labels and pixels, and so the same shards.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from resscale.data.cifar_files import BINARY, LAYOUTS, CifarLayout, read_files
from resscale.data.pack_samples import Split, samples_in_memory
from resscale.data.plain_pickle import Value, load_plain_pickle, text_of
from resscale.errors import DataFormatError

PIXEL_SHAPE = (3, 32, 32)
_PIXEL_BYTES = 3 * 32 * 32


class _Batch(NamedTuple):
    """Labels and pixels, uint8 (n, 3072), of one file."""

    labels: list[int]
    pixels: npt.NDArray[np.uint8]


def cifar_splits(source: Path, kind: str = "cifar10") -> list[Split]:
    """Return the splits `train` and `test`, those that `source` holds; the pixels are in memory.

    Args:
        source: an archive, the folder extracted from one, or a folder that holds either.
        kind: "cifar10", or "cifar100" (its 100 fine labels).

    Raises:
        DataFormatError: not there, damaged, batches missing, wrong sizes, labels out of range, or
            a pickle that asks for more than arrays.
    """
    layout = LAYOUTS[kind]
    home, files = read_files(source, layout)
    suffix = "" if any(name in files for name in layout.all_batches) else BINARY
    splits = []
    for name, batches in layout.batches.items():
        wanted = [batch + suffix for batch in batches]
        missing = [batch for batch in wanted if batch not in files]
        if len(missing) == len(wanted):
            continue
        if missing:
            raise DataFormatError(
                f"{home} lacks {', '.join(missing)}: the split {name} needs all of {wanted[0]} to "
                f"{wanted[-1]}. Download or extract the archive again."
            )
        splits.append(_split(name, wanted, files, home, layout))
    return splits


def _split(
    name: str, batches: list[str], files: dict[str, bytes], home: Path, layout: CifarLayout
) -> Split:
    classes = _class_names(files, home, layout, is_binary=batches[0].endswith(BINARY))
    # Taken out of `files`, so that the memory is free again.
    read = [_read_batch(files.pop(batch), f"{home}/{batch}", layout) for batch in batches]
    labels = np.array([label for batch in read for label in batch.labels], np.int64)
    samples = samples_in_memory(
        str(home),
        keys=(f"{name}-{row:06d}" for row in range(len(labels))),
        labels=labels,
        pixels=np.concatenate([batch.pixels for batch in read]),
        pixel_shape=PIXEL_SHAPE,
    )
    official = layout.num_official[name]
    notes: tuple[str, ...] = ()
    if len(labels) != official:
        notes = (f"{layout.title}'s {name} has {official:,} images, this one {len(labels):,}",)
    return Split(name, samples, classes, notes)


def _class_names(
    files: dict[str, bytes], home: Path, layout: CifarLayout, *, is_binary: bool
) -> tuple[str, ...]:
    meta = layout.meta_text if is_binary else layout.meta
    if meta not in files:
        raise DataFormatError(
            f"{home} lacks {meta}, which holds the class names. Download or extract the archive "
            f"again."
        )
    try:
        if is_binary:
            lines: Value = files[meta].decode().splitlines()
        else:
            lines = load_plain_pickle(files[meta], f"{home}/{meta}").get(layout.names)
        texts = [text_of(line).strip() for line in lines] if isinstance(lines, list) else []
    except ValueError as error:
        raise DataFormatError(f"{home}/{meta} is damaged ({error}). Download it again.") from error
    names = tuple(text for text in texts if text)
    if len(names) != layout.num_classes or len(set(names)) != len(names):
        raise DataFormatError(
            f"{home}/{meta} holds {len(set(names))} different class names; {layout.title} has "
            f"{layout.num_classes}. Download it again."
        )
    return names


def _read_batch(raw: bytes, path: str, layout: CifarLayout) -> _Batch:
    is_binary = path.endswith(BINARY)
    batch = _from_records(raw, path, layout) if is_binary else _from_pickle(raw, path, layout)
    for row, label in enumerate(batch.labels):
        if not 0 <= label < layout.num_classes:
            raise DataFormatError(
                f"{path} has the label {label} at image {row}; {layout.title}'s are 0 to "
                f"{layout.num_classes - 1}. Download it again."
            )
    return batch


def _from_records(raw: bytes, path: str, layout: CifarLayout) -> _Batch:
    record = layout.label_bytes + _PIXEL_BYTES
    if not raw or len(raw) % record:
        raise DataFormatError(
            f"{path} has {len(raw):,} bytes, {layout.title}'s images take {record:,} each: it is "
            f"empty or damaged. Download it again."
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return _Batch(records[:, layout.label_bytes - 1].tolist(), records[:, layout.label_bytes :])


def _from_pickle(raw: bytes, path: str, layout: CifarLayout) -> _Batch:
    content = load_plain_pickle(raw, path)
    pixels, labels = content.get("data"), content.get(layout.labels)
    if not isinstance(pixels, np.ndarray) or not isinstance(labels, list):
        raise DataFormatError(
            f"{path} holds {', '.join(content) or 'nothing'}; an array `data` and a list "
            f"`{layout.labels}` are needed. Download it again."
        )
    is_whole = all(isinstance(label, int) for label in labels)
    if pixels.shape != (len(labels), _PIXEL_BYTES) or not labels or not is_whole:
        raise DataFormatError(
            f"{path} has data of the shape {pixels.shape} and {len(labels)} labels; "
            f"(n, {_PIXEL_BYTES}) and n whole numbers are needed. Download it again."
        )
    return _Batch(labels, pixels)
