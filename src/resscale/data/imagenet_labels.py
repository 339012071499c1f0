"""Labels of ImageNet's validation images: from the devkit, or from a list."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from resscale.errors import DataFormatError, UserInputError

DEVKIT_NAME = "ILSVRC2012_devkit_t12"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"
_WNID = re.compile(r"n\d{8}")
_IMAGE_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})")


@dataclass(frozen=True)
class ValLabels:
    """The class of each validation image.

    Args:
        wnids: the classes, sorted.
        by_number: wnid of image number i + 1 (`ILSVRC2012_val_0000000i`); empty where by name.
        by_name: wnid by file stem; empty where by number.
        origin: where the labels come from, for messages.
    """

    wnids: tuple[str, ...]
    by_number: tuple[str, ...]
    by_name: dict[str, str]
    origin: str

    def wnid_of(self, name: str) -> str:
        """Return the class of an image file.

        Raises:
            DataFormatError: the labels do not cover it.
        """
        stem = Path(name).stem
        if self.by_name:
            wnid = self.by_name.get(stem)
        else:
            match = _IMAGE_NUMBER.fullmatch(stem)
            number = int(match[1]) if match else 0
            wnid = self.by_number[number - 1] if 1 <= number <= len(self.by_number) else None
        if wnid is None:
            raise DataFormatError(
                f"{self.origin} has no label for {name}: it covers {self._coverage()}. "
                f"Give the labels of these images with --val_labels."
            )
        return wnid

    def _coverage(self) -> str:
        if self.by_name:
            return f"{len(self.by_name)} names, such as {next(iter(self.by_name))}"
        return f"ILSVRC2012_val_00000001 to ILSVRC2012_val_{len(self.by_number):08d}"


def labels_from_file(path: Path) -> ValLabels:
    """Read labels: one wnid per line (line i for image number i), or `name wnid` in any order.

    Names may be separated by blanks or commas, more may follow, and a header is skipped: so
    Kaggle's `LOC_val_solution.csv` serves as it is.

    Raises:
        DataFormatError: no such file, or a line of another form.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataFormatError(f"--val_labels {path} cannot be read ({error}).") from error
    rows = [re.split(r"[,\s]+", line.strip()) for line in lines if line.strip()]
    if rows and not any(_WNID.fullmatch(word) for word in rows[0]):
        rows = rows[1:]
    by_number: list[str] = []
    by_name: dict[str, str] = {}
    for row in rows:
        if len(row) == 1 and _WNID.fullmatch(row[0]):
            by_number.append(row[0])
        elif len(row) > 1 and _WNID.fullmatch(row[1]):
            by_name[Path(row[0]).stem] = row[1]
        else:
            raise _bad_list(path, f"the line {' '.join(row)[:60]!r}")
    if bool(by_number) == bool(by_name):
        raise _bad_list(path, "both kinds of lines" if by_number else "no labels")
    wnids = tuple(sorted({*by_number, *by_name.values()}))
    return ValLabels(wnids, tuple(by_number), by_name, str(path))


def labels_from_devkit(devkit: Path) -> ValLabels:
    """Read the labels of the devkit: its folder, or `ILSVRC2012_devkit_t12.tar.gz`.

    Raises:
        UserInputError: scipy, which reads meta.mat, is not installed.
        DataFormatError: the devkit is damaged or incomplete.
    """
    read = _folder_reader(devkit) if devkit.is_dir() else _archive_reader(devkit)
    wnid_by_id = _wnids(read(_META), devkit)
    try:
        ids = [int(line) for line in read(_GROUND_TRUTH).split()]
        by_number = tuple(wnid_by_id[number] for number in ids)
    except (ValueError, KeyError) as error:
        raise DataFormatError(
            f"{devkit}: {_GROUND_TRUTH} has a line that is no ILSVRC2012_ID of a class ({error}). "
            f"Download the devkit again."
        ) from error
    return ValLabels(tuple(sorted(wnid_by_id.values())), by_number, {}, str(devkit))


def find_devkit(source: Path) -> Path | None:
    """Return the devkit in a folder, extracted or not, or None."""
    for name in (DEVKIT_NAME, f"{DEVKIT_NAME}.tar.gz", f"{DEVKIT_NAME}.tar"):
        if (source / name).exists():
            return source / name
    return source if (source / _GROUND_TRUTH).is_file() else None


def _bad_list(path: Path, what: str) -> DataFormatError:
    return DataFormatError(
        f"--val_labels {path} holds {what}; each line must be one wnid such as n01440764 (line i "
        f"for image number i), or a file name and a wnid."
    )


def _folder_reader(folder: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            return (folder / name).read_bytes()
        except OSError as error:
            raise DataFormatError(
                f"The devkit {folder} lacks {name} ({error.strerror}). Extract it again."
            ) from error

    return read


def _archive_reader(archive: Path) -> Callable[[str], bytes]:
    def read(name: str) -> bytes:
        try:
            with tarfile.open(archive) as tar:
                member = next(m for m in tar if m.name.removeprefix("./").endswith("/" + name))
                file = tar.extractfile(member)
                return file.read() if file else b""
        except StopIteration:
            raise DataFormatError(
                f"The devkit {archive} lacks {name}. Download it again."
            ) from None
        except (OSError, EOFError, tarfile.TarError) as error:
            raise DataFormatError(
                f"The devkit {archive} is damaged ({error}). Download it again."
            ) from error

    return read


def _wnids(meta: bytes, devkit: Path) -> dict[int, str]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserInputError(
            "The devkit's meta.mat is a MATLAB file, which scipy reads, and scipy is not "
            'installed: pip install -e ".[imagenet]" - or give the labels with --val_labels FILE.'
        ) from error
    try:
        synsets = loadmat(BytesIO(meta), squeeze_me=True)["synsets"]
        return {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
            for synset in synsets.reshape(-1)
            # The others are the inner nodes of the hierarchy, which have no images.
            if int(synset["num_children"]) == 0
        }
    except Exception as error:  # scipy raises whatever the damage leads it into
        raise DataFormatError(
            f"{devkit}: {_META} is not the devkit's ({type(error).__name__}: {error}). "
            f"Download the devkit again."
        ) from error
