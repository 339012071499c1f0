"""Reading samples: whole files and parts of archives, and what is not there."""

import gzip
import os
from pathlib import Path

import pytest

from resscale.data.pack_images import BadSample
from resscale.data.pack_samples import WHOLE_FILE, SampleRef
from resscale.data.source_reader import SourceReader
from resscale.errors import DataFormatError


def ref(path: Path, offset: int = WHOLE_FILE, size: int = 0) -> SampleRef:
    return SampleRef("key", 0, str(path), offset, size)


def test_whole_file_and_part(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    with SourceReader() as reader:
        assert reader.read(ref(tmp_path / "a")) == b"0123456789"
        assert reader.read(ref(tmp_path / "a", 3, 4)) == b"3456"


def test_bytes_that_are_in_memory_already(tmp_path: Path) -> None:
    with SourceReader() as reader:
        assert reader.read(ref(tmp_path / "none")._replace(raw=b"pixels")) == b"pixels"


def test_gzipped_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    for time_ns, text in ((1, b"old"), (2, b"new")):
        path.write_bytes(gzip.compress(text))
        os.utime(path, ns=(time_ns, time_ns))
        with SourceReader() as reader:
            assert reader.read(ref(path, 0, 3)) == text


def test_missing_file_is_a_bad_sample(tmp_path: Path) -> None:
    with SourceReader() as reader, pytest.raises(BadSample, match="cannot be read: No such file"):
        reader.read(ref(tmp_path / "none"))


def test_archive_that_ends_too_early(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"01234")
    with SourceReader() as reader, pytest.raises(BadSample, match="2 of 10 bytes are there"):
        reader.read(ref(tmp_path / "a.tar", 3, 10))


def test_missing_archive_ends_the_work(tmp_path: Path) -> None:
    with SourceReader() as reader, pytest.raises(DataFormatError, match="Check the disk"):
        reader.read(ref(tmp_path / "none.tar", 0, 1))
