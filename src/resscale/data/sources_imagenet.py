"""ImageNet (ILSVRC 2012) as it is downloaded: tars read in place, or the extracted folders.

```
ILSVRC2012_img_train.tar      a tar of 1,000 tars: n01440764.tar holds n01440764_10026.JPEG ...
ILSVRC2012_img_val.tar        50,000 images; labels from the devkit or --val_labels
ILSVRC2012_devkit_t12.tar.gz
train/<wnid>/*.JPEG           in place of the first
val/<wnid>/*.JPEG             in place of the second; or val/*.JPEG with labels
```
Nothing is extracted: an image is a piece of the outer tar, offset of the inner tar + offset in it.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from resscale.data.imagenet_labels import (
    ValLabels,
    find_devkit,
    labels_from_devkit,
    labels_from_file,
)
from resscale.data.pack_samples import (
    WHOLE_FILE,
    SampleTable,
    Split,
    bytes_array,
    samples_in_file,
    unique_keys,
)
from resscale.data.shard_index import TarMember, scan_tar
from resscale.data.sources import SCAN_THREADS, folder_split, list_images, require_folder
from resscale.errors import DataFormatError, UserInputError

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
_BLOCK = tarfile.BLOCKSIZE
_WNID = re.compile(r"n\d{8}")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")


def imagenet_splits(source: Path, val_labels: Path | None = None) -> list[Split]:
    """Return the splits `train` and `val`, those that `source` holds.

    Classes are the sorted wnids of the training part; of the labels where it is not there.

    Args:
        source: folder of the downloads or of the extracted folders.
        val_labels: file of labels for the validation images, in place of the devkit's.

    Raises:
        DataFormatError: nothing of ImageNet there, a truncated tar, or labels that do not fit.
        UserInputError: labels are needed and not given, or scipy is needed and not installed.
    """
    require_folder(source)
    splits = []
    classes: tuple[str, ...] | None = None
    if (source / TRAIN_TAR).is_file():
        splits.append(_train_from_tar(source / TRAIN_TAR))
    elif (source / "train").is_dir():
        splits.append(folder_split("train", source / "train"))
        _require_wnids(splits[0].classes, source / "train")
    if splits:
        classes = splits[0].classes

    @cache
    def labels() -> ValLabels:
        return _find_labels(source, val_labels)

    if (source / VAL_TAR).is_file():
        splits.append(_val_from_tar(source / VAL_TAR, labels(), classes))
    elif (source / "val").is_dir():
        splits.append(_val_from_folder(source / "val", labels, classes))
    if not splits:
        raise DataFormatError(
            f"{source} holds none of {TRAIN_TAR}, {VAL_TAR}, train/ and val/. Name the folder that "
            f"ImageNet was downloaded or extracted into; for other trees: resscale pack imagefolder"
        )
    return splits


def scan_inner_tar(path: Path, outer: TarMember) -> list[TarMember]:
    """List the files of a tar that lies in another; their offsets count from the outer's start.

    Raises:
        DataFormatError: the inner tar is damaged or ends too early.
    """
    members = []
    end, limit = outer.offset, outer.offset + outer.size
    try:
        # A small buffer: only headers are read, each far from the next.
        with path.open("rb", buffering=4096) as file:
            file.seek(outer.offset)
            with tarfile.TarFile(fileobj=file) as archive:
                for member in archive:
                    end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                    if end > limit:
                        raise tarfile.ReadError("it ends in the middle of an image")
                    if member.isreg():
                        members.append(TarMember(member.name, member.offset_data, member.size))
            # Behind the last whole image, a cut tar looks complete but for its closing zeros.
            file.seek(end)
            if end + _BLOCK > limit or file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("its end-of-archive marker is missing")
    except (tarfile.TarError, EOFError) as error:
        raise DataFormatError(
            f"{path} is damaged: {outer.name} in it is not a whole tar ({error}; up to byte {end} "
            f"it could be read). Download it again."
        ) from error
    return members


def _train_from_tar(path: Path) -> Split:
    inner = sorted(scan_tar(path), key=lambda member: member.name)
    wnids = tuple(Path(member.name).stem for member in inner)
    _require_wnids(wnids, path)
    with ThreadPoolExecutor(SCAN_THREADS) as pool:
        listings = list(pool.map(lambda member: scan_inner_tar(path, member), inner))
    members = [member for listing in listings for member in listing]
    labels = np.repeat(np.arange(len(wnids)), [len(listing) for listing in listings])
    return Split("train", _in_tar(path, members, labels.astype(np.int64)), wnids)


def _val_from_tar(path: Path, labels: ValLabels, classes: tuple[str, ...] | None) -> Split:
    members = sorted(scan_tar(path), key=lambda member: member.name)
    classes, numbers = _label_numbers([m.name for m in members], labels, classes)
    return Split("val", _in_tar(path, members, numbers), classes)


def _val_from_folder(
    folder: Path, labels: Callable[[], ValLabels], classes: tuple[str, ...] | None
) -> Split:
    if any(entry.is_dir() and _WNID.fullmatch(entry.name) for entry in folder.iterdir()):
        split = folder_split("val", folder, classes)
        _require_wnids(split.classes, folder)
        return split
    files, _ = list_images(folder)
    classes, numbers = _label_numbers([name for name, _ in files], labels(), classes)
    table = SampleTable(
        keys=_keys([name for name, _ in files]),
        labels=numbers,
        containers=(str(folder),),
        container_ids=np.zeros(len(files), np.int32),
        names=bytes_array([name.encode() for name, _ in files]),
        offsets=np.full(len(files), WHOLE_FILE, np.int64),
        sizes=np.array([size for _, size in files], np.int64),
    )
    return Split("val", table, classes)


def _in_tar(path: Path, members: list[TarMember], labels: np.ndarray) -> SampleTable:
    table = samples_in_file(
        str(path),
        keys=(),
        labels=labels,
        offsets=np.array([member.offset for member in members], np.int64),
        sizes=np.array([member.size for member in members], np.int64),
    )
    return SampleTable(**{**vars(table), "keys": _keys([member.name for member in members])})


def _keys(names: list[str]) -> np.ndarray:
    """Return the file stems (`n01440764_10026`, `ILSVRC2012_val_00000001`) as keys."""
    return unique_keys([_UNSAFE.sub("_", Path(name).stem) for name in names], names)


def _label_numbers(
    names: list[str], labels: ValLabels, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], np.ndarray]:
    classes = labels.wnids if classes is None else classes
    number_of = {wnid: number for number, wnid in enumerate(classes)}
    wnids = [labels.wnid_of(name) for name in names]
    if unknown := sorted(set(wnids) - set(number_of)):
        raise DataFormatError(
            f"{labels.origin} gives classes that the training part has not, such as {unknown[0]} "
            f"({len(unknown)} in all). Pack the two parts of the same ImageNet together."
        )
    return classes, np.array([number_of[wnid] for wnid in wnids], np.int64)


def _find_labels(source: Path, val_labels: Path | None) -> ValLabels:
    if val_labels is not None:
        return labels_from_file(val_labels)
    devkit = find_devkit(source)
    if devkit is None:
        raise UserInputError(
            f"The validation images in {source} have no labels: put ILSVRC2012_devkit_t12.tar.gz "
            f"beside them, or give a file of labels: --val_labels FILE"
        )
    return labels_from_devkit(devkit)


def _require_wnids(names: tuple[str, ...], where: Path) -> None:
    wrong = [name for name in names if not _WNID.fullmatch(name)]
    if wrong or not names:
        raise DataFormatError(
            f"{where} is not ImageNet's: it holds {wrong[0]!r} instead of "
            f"a wnid such as n01440764. For other trees: resscale pack imagefolder"
            if wrong
            else f"{where} holds no classes. Download or extract it again."
        )
