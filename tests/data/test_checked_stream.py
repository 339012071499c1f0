"""Tars that come as streams: read through, and found out where they are not whole."""

import gzip
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from resscale.data.checked_stream import open_stream
from resscale.errors import DataFormatError, RemoteError, ResscaleError

WriteTar = Callable[[Path, list[tuple[str, bytes]]], Path]


@pytest.fixture
def tar(tmp_path: Path, write_tar: WriteTar) -> Path:
    return write_tar(tmp_path / "a.tar", [("x.jpg", b"1" * 5000), ("y.jpg", b"2" * 300_000)])


def names_in(location: str) -> list[str]:
    with open_stream(location) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        return [member.name for member in archive]


@pytest.mark.parametrize("what", ["{}", "pipe:cat {}", "{}.gz", "pipe:cat {}.gz", "pipe:gzip <{}"])
def test_files_and_commands_compressed_and_not(tar: Path, what: str) -> None:
    tar.with_suffix(".tar.gz").write_bytes(gzip.compress(tar.read_bytes()))
    assert names_in(what.format(tar)) == ["x.jpg", "y.jpg"]


def test_a_command_that_fails_behind_its_last_byte(tar: Path) -> None:
    with pytest.raises(
        RemoteError,
        match=r"did not come as a whole tar .the command ended with exit status 3.*--retry",
    ):
        names_in(f"pipe:cat {tar}; exit 3")


@pytest.mark.parametrize("command", ["exit 22", "no-such-command-here 2>&-", "cat none 2>&-"])
def test_a_command_that_gives_nothing(command: str) -> None:
    with pytest.raises(RemoteError, match="did not come as a whole tar"):
        names_in(f"pipe:{command}")


def cut(tar: Path, size: int) -> str:
    return f"pipe:head -c {size} {tar}"


def test_a_stream_cut_between_two_files(tar: Path) -> None:
    end_of_x = 512 + 5120  # a header and 5000 bytes, padded
    with pytest.raises(RemoteError, match="the end-of-archive marker is missing"):
        names_in(cut(tar, end_of_x))


def test_a_stream_cut_in_a_file(tar: Path) -> None:
    with pytest.raises(RemoteError, match="did not come as a whole tar"):
        names_in(cut(tar, 100_000))


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_gzip_file_cut_anywhere(tar: Path, kept: float) -> None:
    packed = gzip.compress(tar.read_bytes())
    file = tar.with_suffix(".tar.gz")
    file.write_bytes(packed[: int(kept * len(packed))])
    with pytest.raises(DataFormatError, match=r"a\.tar\.gz did not come as a whole tar.*Copy"):
        names_in(str(file))


def test_a_gzip_file_with_other_bytes(tar: Path) -> None:
    packed = bytearray(gzip.compress(tar.read_bytes()))
    packed[-6] ^= 1  # in the checksum
    tar.with_suffix(".tar.gz").write_bytes(packed)
    with pytest.raises(DataFormatError, match="CRC check failed"):
        names_in(str(tar.with_suffix(".tar.gz")))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"did not come as a whole tar .*No such file"):
        names_in(str(tmp_path / "none.tar.gz"))


def test_leaving_in_the_middle_waits_for_nobody(tar: Path) -> None:
    # The command would sleep for longer than a test may take.
    def leave() -> None:
        with open_stream(f"pipe:cat {tar}; exec sleep 1000") as stream:
            assert len(stream.read(512)) == 512
            raise KeyError

    with pytest.raises(KeyError):
        leave()


def test_our_own_errors_stay_what_they_are(tar: Path) -> None:
    with pytest.raises(ResscaleError, match="mine"), open_stream(str(tar)):
        raise ResscaleError("mine")
