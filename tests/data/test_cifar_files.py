"""Where CIFAR's files are found, and their bytes out of archives, whole or damaged."""

import gzip
import io
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from resscale.data.cifar_files import LAYOUTS, read_files
from resscale.errors import DataFormatError

CIFAR10, CIFAR100 = LAYOUTS["cifar10"], LAYOUTS["cifar100"]
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"


@pytest.fixture
def files() -> dict[str, bytes]:
    """Bytes that do not compress; what they mean does not matter here."""
    random = np.random.default_rng(0)
    return {name: random.bytes(5000) for name in (*CIFAR10.all_batches, CIFAR10.meta)}


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def write_archive(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(Path(__file__).parent, FOLDER, recursive=False)  # the folder's own entry
        for name, raw in files.items():
            info = tarfile.TarInfo(f"{FOLDER}/{name}")
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def test_archive_folder_and_what_holds_either(tmp_path: Path, files: dict[str, bytes]) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
    folder = write_folder(tmp_path / "a" / FOLDER, {**files, "readme.html": b"more"})
    archive = write_archive(tmp_path / "b" / ARCHIVE, {**files, "readme.html": b"more"})
    for source, home in (
        (folder, folder),
        (folder.parent, folder),
        (archive, archive),
        (archive.parent, archive),
    ):
        assert read_files(source, CIFAR10) == (home, files)


@pytest.mark.parametrize(("name", "mode"), [("renamed.tgz", "w:gz"), ("unzipped.tar", "w")])
def test_archive_of_another_name(
    tmp_path: Path, files: dict[str, bytes], name: str, mode: str
) -> None:
    archive = write_archive(tmp_path / name, files, mode)
    assert read_files(archive, CIFAR10) == (archive, files)


def test_extracted_folder_comes_before_the_archive_unless_it_is_empty(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    archive = write_archive(tmp_path / ARCHIVE, files)
    folder = write_folder(tmp_path / FOLDER, {})
    assert read_files(tmp_path, CIFAR10)[0] == archive
    (folder / "test_batch").write_bytes(b"x")
    assert read_files(tmp_path, CIFAR10) == (folder, {"test_batch": b"x"})
    (tmp_path / "test_batch").write_bytes(b"y")  # and the folder that is named before both
    assert read_files(tmp_path, CIFAR10) == (tmp_path, {"test_batch": b"y"})


def test_names_that_lead_outside_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    path = tmp_path / "in" / ARCHIVE
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("../../test_batch")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"raw"))
        for name, target in (("data_batch_1", f"{tmp_path}/secret"), ("data_batch_2", "none")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    assert read_files(path, CIFAR10)[1] == {"test_batch": b"raw"}
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kept", [0, 1, 2, 10, 5000, 20_000, -8, -1])
def test_archive_that_is_cut(tmp_path: Path, files: dict[str, bytes], kept: int) -> None:
    archive = write_archive(tmp_path / ARCHIVE, files)
    archive.write_bytes(archive.read_bytes()[:kept])
    with pytest.raises(DataFormatError, match=r"python\.tar\.gz cannot be read as an archive"):
        read_files(tmp_path, CIFAR10)


def test_archive_whose_compression_is_damaged(tmp_path: Path) -> None:
    path = write_archive(tmp_path / ARCHIVE, {"test_batch": bytes(50_000)}, "w")
    packing = zlib.compressobj(wbits=31)
    sound = packing.compress(path.read_bytes()[:30_000]) + packing.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(sound + b"\xff" * 100)  # no block is of type 3
    with pytest.raises(DataFormatError, match=r"cannot be read as an .*invalid block type"):
        read_files(path, CIFAR10)


def test_archive_with_one_wrong_byte(tmp_path: Path, files: dict[str, bytes]) -> None:
    archive = write_archive(tmp_path / ARCHIVE, files)
    raw = bytearray(gzip.decompress(archive.read_bytes()))
    sound = archive.read_bytes()
    raw[raw.index(files["test_batch"]) + 100] ^= 1
    # The wrong byte under the right one's checksum: gzip's last eight bytes.
    archive.write_bytes(gzip.compress(bytes(raw))[:-8] + sound[-8:])
    with pytest.raises(DataFormatError, match="CRC check failed"):
        read_files(archive, CIFAR10)


def test_archive_that_would_fill_the_memory(tmp_path: Path) -> None:
    # 2**28 is above the largest of CIFAR's files; refused by the header, before any byte is read.
    header = tarfile.TarInfo("cifar-10-batches-py/test_batch")
    header.size = 2**28 + 1
    (tmp_path / ARCHIVE).write_bytes(header.tobuf() + bytes(1024))
    tracemalloc.start()
    with pytest.raises(DataFormatError, match=r"test_batch has 268,435,457 bytes"):
        read_files(tmp_path, CIFAR10)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2**20


@pytest.mark.parametrize(
    "raw",
    [b"<html>404</html>", bytes(2000), gzip.compress(b"no tar")],
    # Named: gzip writes the time, and all test processes must know a test by the same name.
    ids=["a web page", "zeros", "gzip of no tar"],
)
def test_file_that_is_no_archive(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.tar.gz").write_bytes(raw)
    with pytest.raises(DataFormatError, match=r"x\.tar\.gz (cannot be read|holds no CIFAR-10)"):
        read_files(tmp_path / "x.tar.gz", CIFAR10)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="none is not there; name CIFAR-10's archive"):
        read_files(tmp_path / "none", CIFAR10)
    with pytest.raises(
        DataFormatError,
        match=r"holds no CIFAR-100: cifar-100-python\.tar\.gz or cifar-100-binary\.tar\.gz, or the",
    ):
        read_files(tmp_path, CIFAR100)


def test_the_other_data_set_is_recognised(tmp_path: Path, files: dict[str, bytes]) -> None:
    archive = write_archive(tmp_path / ARCHIVE, files)
    for source in (archive, tmp_path):
        with pytest.raises(
            DataFormatError, match=r"holds CIFAR-10, not CIFAR-100.*resscale pack cifar10$"
        ):
            read_files(source, CIFAR100)
    folder = write_folder(tmp_path / "other", {"train.bin": b"x"})
    with pytest.raises(DataFormatError, match=r"CIFAR-100, not CIFAR-10\..*pack cifar100$"):
        read_files(folder, CIFAR10)
