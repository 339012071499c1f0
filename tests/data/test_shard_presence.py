"""Whether shards are there: which are looked at, and what is told of those that are not."""

import hashlib
from pathlib import Path

import pytest

from resscale.data.shard_presence import (
    check_presence,
    sha256_of_location,
    size_of_location,
    spread,
)
from resscale.data.shard_table import ShardInfo, ShardTable
from resscale.errors import DataFormatError


def make_shards(folder: Path, count: int) -> ShardTable:
    for number in range(count):
        (folder / f"{number}.tar").write_bytes(bytes(10))
        (folder / f"{number}.index.npz").touch()
    return ShardTable.of(ShardInfo(f"{number}.tar", 1, 10, "") for number in range(count))


def test_few_are_all_looked_at_and_many_evenly() -> None:
    assert spread(0, 5) == []
    assert spread(5, 5) == [0, 1, 2, 3, 4]
    assert spread(9, 5) == [0, 2, 4, 6, 8]  # 8 / 4 apart
    assert spread(1000, 2) == [0, 999]


def test_the_first_that_is_wrong_is_told_of(tmp_path: Path) -> None:
    table = make_shards(tmp_path, 600)  # three tasks of up to 256
    check_presence(table, str(tmp_path), str(tmp_path))
    (tmp_path / "599.tar").write_bytes(bytes(9))
    (tmp_path / "300.index.npz").unlink()
    with pytest.raises(DataFormatError, match=r"300\.index\.npz is missing"):
        check_presence(table, str(tmp_path), str(tmp_path))
    (tmp_path / "300.index.npz").touch()
    with pytest.raises(DataFormatError, match=r"599\.tar has 9 bytes, its manifest says 10"):
        check_presence(table, str(tmp_path), str(tmp_path))


def test_of_very_many_a_sample_is_looked_at(tmp_path: Path) -> None:
    table = make_shards(tmp_path, 5)  # 0, 2 and 4 are looked at
    (tmp_path / "1.tar").unlink()
    check_presence(table, str(tmp_path), str(tmp_path), most=3)
    (tmp_path / "2.tar").unlink()
    with pytest.raises(DataFormatError, match=r"2\.tar is missing, the manifest lists it"):
        check_presence(table, str(tmp_path), str(tmp_path), most=3)


def test_shards_that_lie_elsewhere_name_the_command_for_it(tmp_path: Path) -> None:
    shards, indices = tmp_path / "shards", tmp_path / "indices"
    shards.mkdir()
    indices.mkdir()
    table = make_shards(shards, 1)
    with pytest.raises(DataFormatError) as caught:
        check_presence(table, str(indices), str(shards))
    assert str(caught.value).startswith(f"{indices}/0.index.npz is missing.")
    assert str(caught.value).endswith(f"resscale index --force '{shards}/*.tar' --out {indices}")


def test_size_and_checksum_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert size_of_location(f"file://{tmp_path}/a") == 3
    assert size_of_location(str(tmp_path / "b")) is None
    assert size_of_location(str(tmp_path)) is None  # a folder is no shard
    assert sha256_of_location(str(tmp_path / "a")) == hashlib.sha256(b"abc").hexdigest()
