"""The files of CIFAR-10 and CIFAR-100: what they are called, and their bytes out of an archive.

```
cifar-10-python.tar.gz    cifar-10-batches-py/    data_batch_1 … 5, test_batch, batches.meta
cifar-10-binary.tar.gz    cifar-10-batches-bin/   the same with .bin, batches.meta.txt
cifar-100-python.tar.gz   cifar-100-python/       train, test, meta
cifar-100-binary.tar.gz   cifar-100-binary/       train.bin, test.bin, fine_label_names.txt
```
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from resscale.errors import DataFormatError

BINARY = ".bin"
_CHUNK_BYTES = 1 << 20
# The largest file of either data set has 155 MB; a small archive may unpack to any size.
_LARGEST_BYTES = 1 << 28


@dataclass(frozen=True)
class CifarLayout:
    """How one of the two data sets is named and laid out.

    Args:
        title: its name.
        num_classes: how many classes it has.
        homes: folders and archives that it comes in; the first that is there is read.
        batches: files of each split, in the python version.
        num_official: images in each split of the official data set.
        labels, names: keys of the labels and the class names in the python version.
        meta, meta_text: files of the class names, in the python and in the binary version.
        label_bytes: bytes before the pixels in the binary version; the last is the label.
    """

    title: str
    num_classes: int
    homes: tuple[str, ...]
    batches: dict[str, tuple[str, ...]]
    num_official: dict[str, int]
    labels: str
    names: str
    meta: str
    meta_text: str
    label_bytes: int

    @property
    def all_batches(self) -> tuple[str, ...]:
        """The files of all splits, in the python version."""
        return tuple(name for names in self.batches.values() for name in names)

    @property
    def batch_files(self) -> frozenset[str]:
        """The files of all splits, in either version."""
        return frozenset(name + end for name in self.all_batches for end in ("", BINARY))

    def is_in(self, folder: Path) -> bool:
        """Whether a folder holds some of these files itself."""
        return any((folder / name).is_file() for name in self.batch_files)


LAYOUTS = {
    "cifar10": CifarLayout(
        title="CIFAR-10",
        num_classes=10,
        homes=(
            "cifar-10-batches-py",
            "cifar-10-batches-bin",
            "cifar-10-python.tar.gz",
            "cifar-10-binary.tar.gz",
        ),
        batches={
            "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
            "test": ("test_batch",),
        },
        num_official={"train": 50_000, "test": 10_000},
        labels="labels",
        names="label_names",
        meta="batches.meta",
        meta_text="batches.meta.txt",
        label_bytes=1,
    ),
    "cifar100": CifarLayout(
        title="CIFAR-100",
        num_classes=100,
        homes=(
            "cifar-100-python",
            "cifar-100-binary",
            "cifar-100-python.tar.gz",
            "cifar-100-binary.tar.gz",
        ),
        batches={"train": ("train",), "test": ("test",)},
        num_official={"train": 50_000, "test": 10_000},
        labels="fine_labels",
        names="fine_label_names",
        meta="meta",
        meta_text="fine_label_names.txt",
        label_bytes=2,  # the coarse one of 20, then the fine one of 100
    ),
}
_ALL_FILES = frozenset(
    name
    for layout in LAYOUTS.values()
    for name in (*layout.batch_files, layout.meta, layout.meta_text)
)


def read_files(source: Path, layout: CifarLayout) -> tuple[Path, dict[str, bytes]]:
    """Return the archive or folder that was read, and the bytes of its files by name.

    Args:
        source: an archive, the folder extracted from one, or a folder that holds either.
        layout: which data set.

    Raises:
        DataFormatError: not there, without any batch of this data set, or not readable.
    """
    home = _find_home(source, layout)
    files = _read_archive(home) if home.is_file() else _read_folder(home)
    if not layout.batch_files & files.keys():
        raise DataFormatError(_nothing_found(source, layout, files))
    return home, files


def _find_home(source: Path, layout: CifarLayout) -> Path:
    """Return the archive or folder to read: `source` itself, or what it holds."""
    if not source.exists():
        raise DataFormatError(
            f"{source} is not there; name {layout.title}'s archive, or the folder it lies in."
        )
    if source.is_dir() and not layout.is_in(source):
        for home in (source / name for name in layout.homes):
            if home.is_file() or layout.is_in(home):
                return home
    return source


def _nothing_found(source: Path, layout: CifarLayout, files: dict[str, bytes]) -> str:
    for kind, other in LAYOUTS.items():
        held = other.batch_files & files.keys() or any(
            (source / home).exists() for home in other.homes
        )
        if other is not layout and held:
            return (
                f"{source} holds {other.title}, not {layout.title}. Pack it with: "
                f"resscale pack {kind}"
            )
    archives = " or ".join(name for name in layout.homes if name.endswith(".gz"))
    return (
        f"{source} holds no {layout.title}: {archives}, or the folder extracted from it, is "
        f"needed. Name that, or the folder it lies in."
    )


def _read_folder(folder: Path) -> dict[str, bytes]:
    paths = [folder / name for name in sorted(_ALL_FILES) if (folder / name).is_file()]
    try:
        return {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise DataFormatError(
            f"{error.filename} cannot be read ({error.strerror}). Check its permissions and the "
            f"disk it lies on."
        ) from error


def _read_archive(path: Path) -> dict[str, bytes]:
    """Return CIFAR's files out of a tar, gzipped or not; nothing is written to disk."""
    files = {}
    try:
        with path.open("rb") as file:
            is_gzipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if is_gzipped else nullcontext(file) as stream:
                with tarfile.open(fileobj=stream, mode="r|") as archive:
                    for member in archive:
                        name = PurePosixPath(member.name).name
                        if name in _ALL_FILES and member.size > _LARGEST_BYTES:
                            raise ValueError(f"{member.name} has {member.size:,} bytes")
                        content = archive.extractfile(member) if member.isreg() else None
                        if name in _ALL_FILES and content:
                            files[name] = content.read()
                # To the very end: only there is gzip's checksum compared.
                while stream.read(_CHUNK_BYTES):
                    pass
    except (OSError, EOFError, ValueError, zlib.error, tarfile.TarError) as error:
        raise DataFormatError(
            f"{path} cannot be read as an archive ({error}). Download it again."
        ) from error
    return files
