"""Indexing shards of other tools, here and on a server."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fault_server import serve

from resscale.data.index_shards import index_shards
from resscale.data.manifest import MANIFEST_NAME, Manifest, sha256_of
from resscale.data.shard_index import ShardIndex
from resscale.data.shard_patterns import expand_shards
from resscale.data.shard_pool import IN_THREADS
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
    with pytest.raises(DataFormatError, match=r"1 of 2 samples have no label \(\.cls\)"):
        index_all(tmp_path)


def test_fewer_names_than_labels(foreign_shards: Path) -> None:
    with pytest.raises(DataFormatError, match="labels up to 2, --classes gives 1 names"):
        index_all(foreign_shards, classes=("cat",))


def test_shards_without_samples(write_tar: WriteTar, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(DataFormatError, match="hold no samples"):
        index_all(tmp_path)


def test_indices_may_lie_in_another_folder(
    foreign_shards: Path, tmp_path: Path, contents, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(foreign_shards)
    monkeypatch.chdir(tmp_path)  # the manifest must hold for other folders to stand in
    out = tmp_path / "some" / "index"
    made = index_shards(expand_shards(["foreign"]), out=str(out))
    assert contents(foreign_shards) == before
    manifest = Manifest.load(out)
    assert manifest == made
    assert manifest.shards_root == str(foreign_shards)
    manifest.check_sizes()
    assert sorted(path.name for path in out.iterdir()) == [
        MANIFEST_NAME,
        *(name.replace(".tar", ".index.npz") for name in THREE),
    ]
    assert manifest.fingerprint == index_all(foreign_shards).fingerprint


def test_checksums_of_local_shards_may_be_left_out(foreign_shards: Path) -> None:
    manifest = index_all(foreign_shards, checksums=False, processes=IN_THREADS)
    assert {shard.sha256 for shard in manifest.shards} == {""}
    assert manifest.num_bytes == sum(path.stat().st_size for path in foreign_shards.glob("*.tar"))


@pytest.mark.parametrize("ranges", [True, False])
def test_shards_of_a_server(foreign_shards: Path, tmp_path: Path, ranges: bool) -> None:
    local = index_all(foreign_shards)
    out = tmp_path / "out"
    with serve(foreign_shards) as server:
        server.ranges = ranges
        shards = expand_shards([server.url + "/part-000{0..2}.tar"])
        index_shards(shards, ("cat", "dog", "newt"), out=str(out))
        manifest = Manifest.load(out)
        manifest.check_sizes()
    assert manifest.shards == local.shards  # the SHA-256 too: they are small
    assert manifest.class_counts == (4, 4, 4)
    assert manifest.classes == ("cat", "dog", "newt")
    for number, name in enumerate(THREE):
        assert manifest.shard_location(number) == f"{server.url}/{name}"
        index = Path(manifest.index_location(number))
        assert index.read_bytes() == local.index_path(number).read_bytes()


def test_checksums_of_big_images_are_taken_when_asked_for(
    write_tar: WriteTar, tmp_path: Path
) -> None:
    folder, out = tmp_path / "shards", tmp_path / "out"
    folder.mkdir()
    path = write_tar(folder / "a.tar", [("x.jpg", bytes(6 << 20)), ("y.jpg", bytes(6 << 20))])
    with serve(folder) as server:
        shards = [f"{server.url}/a.tar"]
        quick = index_shards(shards, out=str(out))
        assert server.bytes_sent < 4 << 20  # 1 MB, two ranges, and a byte for the size
        whole = index_shards(shards, out=str(out), checksums=True)
    assert quick.shards[0].sha256 == ""
    assert whole.shards[0].sha256 == sha256_of(path)
    assert quick.shards[0].bytes == whole.shards[0].bytes == path.stat().st_size


def test_a_server_that_fails_now_and_then_changes_nothing(
    foreign_shards: Path, tmp_path: Path
) -> None:
    local = index_all(foreign_shards)
    faults = ["busy", "drop", "truncate", "reset", "drop"]
    with serve(foreign_shards, faults) as server:
        shards = [f"{server.url}/{name}" for name in THREE]
        assert index_shards(shards, out=str(tmp_path / "out")).shards == local.shards
        assert sorted(server.faults()) == sorted(faults)


def test_a_server_takes_no_indices(foreign_shards: Path) -> None:
    with serve(foreign_shards) as server:
        with pytest.raises(UserInputError, match=r"cannot be written to.*--out DIR"):
            index_shards([f"{server.url}/part-0000.tar"])
        assert not server.asked


def test_a_shard_that_a_server_has_not(foreign_shards: Path, tmp_path: Path) -> None:
    with (
        serve(foreign_shards) as server,
        pytest.raises(DataFormatError, match=r"part-0003\.tar does not exist"),
    ):
        index_shards(expand_shards([server.url + "/part-000{0..3}.tar"]), out=str(tmp_path / "o"))
    assert not (tmp_path / "o" / MANIFEST_NAME).exists()
