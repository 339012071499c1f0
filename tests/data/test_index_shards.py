"""Indexing shards of other tools, and checking shards against their manifest."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from resscale.data.index_shards import expand_shards, folder_of, index_shards, verify_shards
from resscale.data.manifest import MANIFEST_NAME, Manifest
from resscale.data.shard_index import ShardIndex
from resscale.errors import DataFormatError, UserInputError

WriteTar = Callable[[Path, list[tuple[str, bytes]]], Path]
THREE = ["part-0000.tar", "part-0001.tar", "part-0002.tar"]


def index_all(folder: Path, **options) -> Manifest:
    return index_shards(expand_shards([str(folder)]), **options)


@pytest.mark.parametrize("processes", [1, 2])
def test_shards_of_webdatasets_writer(
    foreign_shards: Path, jpegs: tuple[bytes, ...], processes: int
) -> None:
    index_all(foreign_shards, classes=("cat", "dog", "newt"), processes=processes)
    manifest = Manifest.load(foreign_shards)
    manifest.check_sizes()
    assert [shard.name for shard in manifest.shards] == THREE
    assert manifest.class_counts == (4, 4, 4)
    assert manifest.classes == ("cat", "dog", "newt")
    index = ShardIndex.load(manifest.index_path(2))
    raw = manifest.shard_path(2).read_bytes()
    assert raw[index.offsets[3] :][: index.sizes[3]] == jpegs[11]
    assert verify_shards(foreign_shards, processes) == manifest


@pytest.mark.parametrize(
    "patterns",
    [
        ["{}"],
        ["{}/part-000{{0..2}}.tar"],
        ["{}/*.tar"],
        ["{}/part-0000.tar", "{}/part-000[12].tar", "{}/part-0001.tar"],
    ],
)
def test_patterns(foreign_shards: Path, patterns: list[str]) -> None:
    found = expand_shards([pattern.format(foreign_shards) for pattern in patterns])
    assert [path.name for path in found] == THREE


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("https://example.org/a.tar", "is an address; `resscale index` reads local shards"),
        ("pipe:cat a.tar", "is an address"),
        ("{}/none.tar", r"none\.tar is missing"),
        ("{}/part-000{{0..3}}.tar", r"part-0003\.tar is missing"),
        ("{}/part-000{{0..2.tar", "its braces do not pair up"),
        ("{}/empty", "No shards fit"),
        ("{}/a.tar.gz", r"is no \.tar file.*gunzip"),
    ],
)
def test_patterns_that_fit_nothing(foreign_shards: Path, pattern: str, message: str) -> None:
    (foreign_shards / "empty").mkdir()
    (foreign_shards / "a.tar.gz").touch()
    with pytest.raises(UserInputError, match=message):
        expand_shards([pattern.format(foreign_shards)])


def test_shards_of_two_folders(foreign_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(foreign_shards, tmp_path / "other")
    with pytest.raises(UserInputError, match="lie in 2 folders"):
        expand_shards([str(foreign_shards), str(tmp_path / "other")])


def test_manifest_of_pack_is_replaced_by_force_only(foreign_shards: Path) -> None:
    Manifest(("x", "y", "z"), (), (), {"command": "resscale pack idx"}).save(foreign_shards)
    with pytest.raises(UserInputError, match=r"written by resscale pack idx .*--force"):
        index_all(foreign_shards)
    forced = index_all(foreign_shards, force=True)
    assert forced.classes == ("x", "y", "z")  # shards hold numbers only: names are kept
    assert index_all(foreign_shards, classes=("a", "b", "c")).classes == ("a", "b", "c")


def test_damaged_manifest_is_replaced(foreign_shards: Path) -> None:
    (foreign_shards / MANIFEST_NAME).write_text("{")
    index_all(foreign_shards)
    assert Manifest.load(foreign_shards).num_samples == 12


@pytest.mark.parametrize("processes", [1, 2])
def test_truncated_shard_is_named(foreign_shards: Path, processes: int) -> None:
    path = foreign_shards / "part-0001.tar"
    path.write_bytes(path.read_bytes()[:-12_000])
    with pytest.raises(DataFormatError, match=r"part-0001\.tar is truncated.*Copy or pack"):
        index_all(foreign_shards, processes=processes)
    assert not (foreign_shards / MANIFEST_NAME).exists()


def test_label_that_is_no_integer(write_tar: WriteTar, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.cls", b"cat")])
    with pytest.raises(DataFormatError, match=r"a\.tar: sample 'x' has the label b'cat'"):
        index_all(tmp_path)


def test_shards_without_labels(write_tar: WriteTar, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.jpg", b"1")])
    manifest = index_all(tmp_path)
    assert manifest.num_samples == 1
    assert manifest.class_counts == ()


def test_labels_for_some_samples_only(write_tar: WriteTar, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("x.jpg", b"1"), ("x.cls", b"0"), ("y.jpg", b"1")])
    with pytest.raises(DataFormatError, match=r"1 of 2 samples have no \.cls file"):
        index_all(tmp_path)


def test_fewer_names_than_labels(foreign_shards: Path) -> None:
    with pytest.raises(DataFormatError, match="labels up to 2, --classes gives 1 names"):
        index_all(foreign_shards, classes=("cat",))


def test_shards_without_samples(write_tar: WriteTar, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(DataFormatError, match="hold no samples"):
        index_all(tmp_path)


def test_verify_names_each_wrong_shard(foreign_shards: Path) -> None:
    index_all(foreign_shards)
    paths = [foreign_shards / name for name in THREE]
    paths[0].unlink()
    raw = bytearray(paths[1].read_bytes())
    raw[tarfile.BLOCKSIZE * 4] ^= 1
    paths[1].write_bytes(raw)
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    with pytest.raises(DataFormatError) as caught:
        verify_shards(foreign_shards)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 of the 3 shards")
    assert lines[1] == "  part-0000.tar: missing"
    assert lines[2] == "  part-0001.tar: its SHA-256 differs"
    assert "bytes instead of" in lines[3]


def test_verify_reads_the_indices(foreign_shards: Path, write_tar: WriteTar) -> None:
    manifest = index_all(foreign_shards)
    manifest.index_path(0).unlink()
    shutil.copy(manifest.index_path(1), manifest.index_path(2))
    ShardIndex.load(manifest.index_path(1))
    with pytest.raises(DataFormatError, match=r"part-0000\.index\.npz is missing or damaged"):
        verify_shards(foreign_shards)


def test_folder_that_verify_means(foreign_shards: Path) -> None:
    assert folder_of([str(foreign_shards)]) == foreign_shards
    assert folder_of([f"{foreign_shards}/*.tar"]) == foreign_shards
