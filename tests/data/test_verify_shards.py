"""Checking shards against their manifest, here and on a server."""

import shutil
import tarfile
from pathlib import Path

import pytest
from fault_server import serve

from resscale.data.index_shards import index_shards
from resscale.data.manifest import Manifest
from resscale.data.shard_patterns import expand_shards
from resscale.data.verify_shards import folder_of, verify_shards
from resscale.errors import DataFormatError

THREE = ["part-0000.tar", "part-0001.tar", "part-0002.tar"]


@pytest.fixture
def manifest(foreign_shards: Path) -> Manifest:
    return index_shards(expand_shards([str(foreign_shards)]))


def flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[tarfile.BLOCKSIZE * 4] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_that_are_as_they_were(manifest: Manifest, processes: int) -> None:
    assert verify_shards(manifest.root, processes) == manifest


def test_each_wrong_shard_is_named(manifest: Manifest) -> None:
    paths = [manifest.shard_path(number) for number in range(3)]
    paths[0].unlink()
    flip_a_bit(paths[1])
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    with pytest.raises(DataFormatError) as caught:
        verify_shards(manifest.root)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 of the 3 shards")
    assert lines[1] == "  part-0000.tar: missing"
    assert lines[2] == "  part-0001.tar: its SHA-256 differs"
    assert "bytes instead of" in lines[3]


def test_indices_are_read(manifest: Manifest) -> None:
    manifest.index_path(0).unlink()
    with pytest.raises(DataFormatError, match=r"part-0000\.index\.npz is missing or damaged"):
        verify_shards(manifest.root)


def test_rows_of_indices_are_counted(manifest: Manifest, write_tar, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = index_shards([write_tar(tmp_path / "b" / "b.tar", [("x.jpg", b"1"), ("x.cls", b"1")])])
    shutil.copy(other.index_path(0), manifest.index_path(2))
    with pytest.raises(DataFormatError, match=r"part-0002\.tar: its index lists 1 samples"):
        verify_shards(manifest.root)


def test_a_shard_without_checksum_is_compared_by_its_size(foreign_shards: Path) -> None:
    manifest = index_shards(expand_shards([str(foreign_shards)]), checksums=False)
    flip_a_bit(manifest.shard_path(0))
    verify_shards(manifest.root)
    manifest.shard_path(0).write_bytes(b"")
    with pytest.raises(DataFormatError, match="0 bytes instead of"):
        verify_shards(manifest.root)


def test_shards_of_a_server(manifest: Manifest, foreign_shards: Path) -> None:
    with serve(foreign_shards, ["", "", "drop", "busy"]) as server:
        # Manifest, indices and shards are all read from there.
        assert verify_shards(server.url).shards == manifest.shards
        assert len(server.faults()) == 2
        flip_a_bit(manifest.shard_path(1))
        manifest.shard_path(2).unlink()
        with pytest.raises(DataFormatError) as caught:
            verify_shards(server.url)
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["  part-0001.tar: its SHA-256 differs", "  part-0002.tar: missing"]


def test_folder_that_is_meant(foreign_shards: Path) -> None:
    assert folder_of([str(foreign_shards)]) == str(foreign_shards)
    assert folder_of([f"{foreign_shards}/*.tar"]) == str(foreign_shards)
    assert folder_of(["s3://bucket/train"]) == "s3://bucket/train"
    assert folder_of(["s3://bucket/train/t-{0..9}.tar"]) == "s3://bucket/train"
