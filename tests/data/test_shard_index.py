"""The offset index: it finds every image of a shard, and names what is wrong with a bad one."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resscale.data.range_file import RangeFile
from resscale.data.shard_index import (
    NO_LABEL,
    ShardIndex,
    build_shard_index,
    index_of,
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


def test_label_in_json_where_there_is_no_cls(write_tar: WriteTar, tmp_path: Path) -> None:
    members = [
        ("a.jpg", b"1"),
        ("a.json", b'{"label": 7}'),
        ("b.json", b'{"label": 7}'),
        ("b.cls", b"3"),
        ("b.jpg", b"1"),
        ("c.jpg", b"1"),
        ("c.json", b'{"label": "cat"}'),
        ("d.jpg", b"1"),
        ("d.json", b'{"caption": "a cat"}'),
        ("e.jpg", b"1"),
        ("e.json", b"no json"),
        ("f.jpg", b"1"),
        ("f.json", b'{"label": true}'),
        ("g.jpg", b"1"),
        ("g.json", b" " * 70_000 + b'{"label": 7}'),
    ]
    index = build_shard_index(write_tar(tmp_path / "a.tar", members))
    # c to g: no number, no label, no JSON, a truth value, and longer than what is looked into
    assert index.labels.tolist() == [7, 3, -1, -1, -1, -1, -1]


def test_label_below_zero_in_json(write_tar: WriteTar, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.json", b'{"label": -2}')])
    with pytest.raises(DataFormatError, match=r"sample 'x' has the .label. -2 in its \.json"):
        build_shard_index(path)


def test_index_of_a_file_read_by_ranges(foreign_shards: Path) -> None:
    for path in foreign_shards.glob("*.tar"):
        content = path.read_bytes()
        file = RangeFile(lambda start, stop, content=content: content[start:stop], len(content))
        assert index_of(file, "remote").to_bytes() == build_shard_index(path).to_bytes()
        assert file.finish() == hashlib.sha256(content).hexdigest()


def test_big_images_are_left_out_when_reading_by_ranges(
    write_tar: WriteTar, tmp_path: Path
) -> None:
    big = bytes(6 << 20)
    members = [(f"{n}.{end}", raw) for n in range(4) for end, raw in (("cls", b"5"), ("jpg", big))]
    path = write_tar(tmp_path / "a.tar", members)
    content, asked = path.read_bytes(), []

    def read_range(start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return content[start:stop]

    index = index_of(RangeFile(read_range, len(content)), "remote")
    assert index.to_bytes() == build_shard_index(path).to_bytes()
    # 1 MB, 64 kB behind each of the first three images, and the end; none for the labels
    assert asked[:4] == [1 << 20, *[1 << 16] * 3]
    assert len(asked) == 5


def test_index_out_of_bytes(foreign_shards: Path) -> None:
    index = build_shard_index(foreign_shards / "part-0000.tar")
    loaded = ShardIndex.from_bytes(index.to_bytes(), "s3://bucket/a.index.npz")
    assert loaded.keys.tolist() == index.keys.tolist()
    with pytest.raises(DataFormatError, match=r"resscale index 's3://bucket/\*\.tar'"):
        ShardIndex.from_bytes(b"", "s3://bucket/a.index.npz")


def test_a_header_with_a_size_below_zero_ends_in_an_error_and_not_in_a_circle() -> None:
    member = bytearray(tarfile.TarInfo("a.jpg").tobuf(tarfile.GNU_FORMAT))
    member[124:136] = b"\xff" * 10 + b"\xf6\x00"  # -2560 in base 256: five blocks back
    # A header's checksum counts its own eight bytes as spaces.
    total = sum(member[:148]) + 8 * 32 + sum(member[156:])
    member[148:156] = b"%06o\0 " % total
    with pytest.raises(DataFormatError, match=r"x\.tar is truncated .*impossible size"):
        index_of(io.BytesIO(bytes(member) + bytes(10_240)), "x.tar")


def test_an_index_whose_zip_asks_for_a_later_version_is_damaged(foreign_shards: Path) -> None:
    raw = bytearray(build_shard_index(foreign_shards / "part-0000.tar").to_bytes())
    # In the directory at the end, the version needed stands 6 bytes behind the mark of an entry.
    raw[raw.index(b"PK\x01\x02") + 6] = 255
    with pytest.raises(DataFormatError, match="x is not a readable shard index"):
        ShardIndex.from_bytes(bytes(raw), "x")
