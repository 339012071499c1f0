"""Class-per-folder trees: `root/<class>/<image>`, or `root/<split>/<class>/<image>`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from resscale.data.pack_samples import (
    WHOLE_FILE,
    SampleTable,
    Split,
    bytes_array,
    sample_key,
    unique_keys,
)
from resscale.errors import DataFormatError

_PHOTO_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"}
_OTHER_SUFFIXES = {".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".tif", ".tiff"}
IMAGE_SUFFIXES = frozenset(_PHOTO_SUFFIXES | _OTHER_SUFFIXES)
SPLIT_FOLDERS = ("train", "val", "test")
# Listing is waiting for the file system: on a network one, threads hide most of it.
SCAN_THREADS = 16


def imagefolder_splits(source: Path, split_name: str = "train") -> list[Split]:
    """Return the splits of a class-per-folder tree.

    With a folder `train` and a folder `val` or `test`, each of these is a split; else the whole
    tree is one, called `split_name`. Classes are the sorted names of the training folders, or of
    the only split's.

    Raises:
        DataFormatError: no such folder, no classes, no images, or a class that train/ lacks.
    """
    require_folder(source)
    present = [name for name in SPLIT_FOLDERS if (source / name).is_dir()]
    if "train" not in present or len(present) == 1:
        return [folder_split(split_name, source)]
    train = folder_split("train", source / "train")
    others = [folder_split(name, source / name, train.classes) for name in present[1:]]
    return [train, *others]


def folder_split(name: str, root: Path, classes: Sequence[str] | None = None) -> Split:
    """Scan one class-per-folder tree.

    Args:
        name: the split's name.
        root: folder of class folders.
        classes: the classes by label, where another split has settled them.

    Raises:
        DataFormatError: no class folders, none with an image, or a class not among `classes`.
    """
    folders = sorted(
        entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."
    )
    if not folders:
        raise DataFormatError(
            f"{root} holds no folders; one folder per class is needed: {root}/<class>/<image>."
        )
    known = list(folders if classes is None else classes)
    if unknown := sorted(set(folders) - set(known)):
        raise DataFormatError(
            f"{root} has {len(unknown)} class folders that the training split has not, such as "
            f"{unknown[0]!r}. Rename them, or pack the two as separate data sets."
        )
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        listings = list(pool.map(list_images, [root / folder for folder in folders]))
    samples = _table(root, folders, listings, {name: label for label, name in enumerate(known)})
    empty = [folder for folder, (files, _) in zip(folders, listings, strict=True) if not files]
    if len(empty) == len(folders):
        raise DataFormatError(
            f"{root}: none of its {len(folders)} folders holds an image "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}). Name the folder above the class folders."
        )
    notes = [f"class folders without images: {len(empty)}, such as {empty[0]!r}"] if empty else []
    if ignored := sum(other for _, other in listings):
        notes.append(f"ignored files that are not images: {ignored}")
    return Split(name, samples, tuple(known), tuple(notes))


def list_images(folder: Path) -> tuple[list[tuple[str, int]], int]:
    """List the images below a folder, sorted: (path below it, bytes), and the number of others.

    Raises:
        DataFormatError: the folder cannot be listed.
    """
    files: list[tuple[str, int]] = []
    others = 0
    waiting = [""]
    try:
        while waiting:
            below = waiting.pop()
            with os.scandir(folder / below) as entries:
                for entry in entries:
                    relative = below + entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(relative + "/")
                    elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:  # noqa: PTH122
                        files.append((relative, _size(entry)))
                    else:
                        others += 1
    except OSError as error:
        raise DataFormatError(
            f"{folder} cannot be listed ({error.strerror}). Check its permissions."
        ) from error
    files.sort()
    return files, others


def require_folder(source: Path) -> None:
    """Refuse a source that is not a folder.

    Raises:
        DataFormatError: there is no such folder.
    """
    if not source.is_dir():
        kind = "a file, not a folder" if source.exists() else "not there"
        raise DataFormatError(f"{source} is {kind}; name the folder that holds the data set.")


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:
        return 0  # a dangling link: reading it fails later, and the sample is listed as left out


def _table(
    root: Path,
    folders: list[str],
    listings: list[tuple[list[tuple[str, int]], int]],
    label_of: dict[str, int],
) -> SampleTable:
    keys, names, sizes, containers, labels, identities = [], [], [], [], [], []
    for number, (folder, (files, _)) in enumerate(zip(folders, listings, strict=True)):
        for name, size in files:
            keys.append(sample_key(folder, name))
            identities.append(f"{folder}/{name}")
            names.append(os.fsencode(name))
            sizes.append(size)
        containers += [number] * len(files)
        labels += [label_of[folder]] * len(files)
    return SampleTable(
        keys=unique_keys(keys, identities),
        labels=np.array(labels, np.int64),
        containers=tuple(str(root / folder) for folder in folders),
        container_ids=np.array(containers, np.int32),
        names=bytes_array(names),
        offsets=np.full(len(labels), WHOLE_FILE, np.int64),
        sizes=np.array(sizes, np.int64),
    )
