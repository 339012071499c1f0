"""The offset index: it finds every image of a shard, and names what is wrong with a bad one."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resscale.data.shard_index import (
    NO_LABEL,
    ShardIndex,
    build_shard_index,
    scan_tar,
    split_key,
)
from resscale.errors import DataFormatError

WriteTar = Callable[[Path, list[tuple[str, bytes]]], Path]


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("a.jpg", "a", "jpg"),
        ("d.e/a.b.JPG", "d.e/a", "b.jpg"),
        ("a", "a", ""),
    ],
)
def test_names_split_as_webdataset_does(name: str, key: str, extension: str) -> None:
    assert split_key(name) == (key, extension)


def test_index_of_foreign_shards_finds_each_image(
    foreign_shards: Path, jpegs: tuple[bytes, ...]
) -> None:
    for number, path in enumerate(sorted(foreign_shards.glob("*.tar"))):
        index = build_shard_index(path)
        assert len(index) == 4
        raw = path.read_bytes()
        for row in range(4):
            offset, size = int(index.offsets[row]), int(index.sizes[row])
            assert raw[offset : offset + size] == jpegs[4 * number + row]
            assert index.keys[row] == f"sample{4 * number + row:03d}".encode()
            assert index.labels[row] == number  # 4 samples a class, 4 a shard


@given(sizes=st.lists(st.integers(0, 3000), max_size=12))
def test_offsets_are_right_for_any_sizes(sizes: list[int], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("any") / "a.tar"
    with tarfile.open(path, "w") as archive:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.size = size
            archive.addfile(info, io.BytesIO(bytes([number]) * size))
    index = build_shard_index(path)
    raw = path.read_bytes()
    assert index.sizes.tolist() == sizes
    for number, (offset, size) in enumerate(zip(index.offsets, index.sizes, strict=True)):
        assert raw[offset : offset + size] == bytes([number]) * size


def test_saved_index_is_loaded(foreign_shards: Path, tmp_path: Path) -> None:
    index = build_shard_index(foreign_shards / "part-0000.tar")
    index.save(tmp_path / "i.npz")
    loaded = ShardIndex.load(tmp_path / "i.npz")
    for name in ("keys", "offsets", "sizes", "labels"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(index, name))
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_damaged_index(tmp_path: Path, damage: bytes | None) -> None:
    if damage is not None:
        (tmp_path / "i.npz").write_bytes(damage)
    with pytest.raises(DataFormatError, match="is not a readable shard index"):
        ShardIndex.load(tmp_path / "i.npz")


def test_shard_without_labels(write_tar: WriteTar, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("x.png", b"1"), ("y.json", b"{}"), ("y.webp", b"2")])
    index = build_shard_index(path)
    assert index.labels.tolist() == [NO_LABEL, NO_LABEL]
    assert index.keys.tolist() == [b"x", b"y"]


def test_empty_tar_has_an_empty_index(write_tar: WriteTar, tmp_path: Path) -> None:
    assert len(build_shard_index(write_tar(tmp_path / "a.tar", []))) == 0


@pytest.mark.parametrize("label", [b"three", b"-1", b"", b"1.5"])
def test_label_that_is_no_class(write_tar: WriteTar, tmp_path: Path, label: bytes) -> None:
    path = write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.cls", label)])
    with pytest.raises(DataFormatError, match="one integer from 0 up"):
        build_shard_index(path)


def test_sample_without_image(write_tar: WriteTar, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("x.txt", b"1"), ("x.cls", b"1")])
    with pytest.raises(DataFormatError, match="sample 'x' has no image, only"):
        build_shard_index(path)


def test_key_in_two_places(write_tar: WriteTar, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("y.jpg", b"1"), ("x.cls", b"1")])
    with pytest.raises(DataFormatError, match="key 'x' stands in two places"):
        build_shard_index(path)


def test_cut_in_the_middle_of_a_member(foreign_shards: Path) -> None:
    path = foreign_shards / "part-0000.tar"
    members = list(scan_tar(path))
    path.write_bytes(path.read_bytes()[: members[-1].offset + 10])
    with pytest.raises(DataFormatError, match=r"part-0000\.tar is truncated"):
        build_shard_index(path)


def test_cut_between_two_members(foreign_shards: Path) -> None:
    path = foreign_shards / "part-0000.tar"
    second = list(scan_tar(path))[1]
    blocks = -(-second.size // tarfile.BLOCKSIZE)
    path.write_bytes(path.read_bytes()[: second.offset + blocks * tarfile.BLOCKSIZE])
    with pytest.raises(DataFormatError, match="the end-of-archive marker is missing"):
        build_shard_index(path)


def test_something_else_than_a_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataFormatError, match="not an uncompressed tar"):
        build_shard_index(tmp_path / "a.tar")
