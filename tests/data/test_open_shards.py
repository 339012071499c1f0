"""What the user names: folders, addresses and patterns, with a manifest and without."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from fault_server import serve

from resscale.data.cache import ShardCache
from resscale.data.index_shards import index_shards
from resscale.data.manifest import Manifest
from resscale.data.open_shards import open_manifest
from resscale.data.shard_patterns import expand_shards
from resscale.errors import DataFormatError, UserInputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("what", ["{}", "{}/manifest.json", "{}/*.tar", "{}/part-000{{0..2}}.tar"])
def test_a_manifest_that_is_there_is_taken(foreign_shards: Path, cache: Path, what: str) -> None:
    manifest = index_shards(expand_shards([str(foreign_shards)]), ("cat", "dog", "newt"))
    assert open_manifest(what.format(foreign_shards)) == manifest
    with serve(foreign_shards) as server:
        found = open_manifest(what.format(server.url))
        assert found.root == server.url
        assert found.fingerprint == manifest.fingerprint
    assert not cache.exists()


def open_and_wait(location: str, folder: Path, barrier: Any, results: Any) -> None:
    """A rank: it has nothing of the others but the cache of the node."""
    cache = ShardCache(folder, 10**8)
    barrier.wait(60)
    results.put(open_manifest(location, cache).fingerprint)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("what", ["{}", "{}/*.tar"])
def test_the_ranks_of_a_node_download_a_manifest_once(
    foreign_shards: Path, tmp_path: Path, what: str
) -> None:
    manifest = index_shards(expand_shards([str(foreign_shards)]))
    context = multiprocessing.get_context("fork")
    with serve(foreign_shards) as server:
        location, folder = what.format(server.url), tmp_path / "node"

        def downloads() -> list[str]:
            return server.whole_downloads("manifest.json")

        barrier, results = context.Barrier(2), context.Queue()
        ranks = [
            context.Process(target=open_and_wait, args=(location, folder, barrier, results))
            for _ in range(2)
        ]
        for rank in ranks:
            rank.start()
        assert [results.get(timeout=60) for _ in ranks] == [manifest.fingerprint] * 2
        for rank in ranks:
            rank.join(60)
        assert len(downloads()) == 1
        # Each has asked for the version: a byte.
        asked = [each.stop for each in server.asked if each.path == "/manifest.json"]
        assert sorted(asked, key=str) == [1, 1, (foreign_shards / "manifest.json").stat().st_size]
        # Another version is another download, for all of them.
        text = (foreign_shards / "manifest.json").read_text()
        (foreign_shards / "manifest.json").write_text(text.replace('"command": "', '"command": "a'))
        cache = ShardCache(folder, 10**8)
        assert open_manifest(location, cache).source["command"].startswith("a")
        assert open_manifest(location, cache).source["command"].startswith("a")
        assert len(downloads()) == 2
        # A damaged copy is not believed, and no cache is no reason to fail.
        for copied in folder.glob("*manifest.json"):
            copied.write_bytes(b"x" * copied.stat().st_size)
        assert open_manifest(location, cache).fingerprint == manifest.fingerprint
        full = ShardCache(tmp_path / "full", 1)
        assert open_manifest(location, full).fingerprint == manifest.fingerprint


@pytest.mark.parametrize("what", ["{}", "{}/*.tar"])
def test_shards_without_one_are_indexed(foreign_shards: Path, cache: Path, what: str) -> None:
    local = open_manifest(what.format(foreign_shards))
    assert local.shard_location(0) == str(foreign_shards / "part-0000.tar")
    with serve(foreign_shards) as server:
        found = open_manifest(what.format(server.url))
    assert found.shard_location(0) == f"{server.url}/part-0000.tar"
    assert [m.num_samples for m in (local, found)] == [12, 12]
    assert all(Path(m.root).is_relative_to(cache) for m in (local, found))


def test_a_part_of_a_folder_is_a_data_set_of_its_own(foreign_shards: Path) -> None:
    index_shards(expand_shards([str(foreign_shards)]))
    part = open_manifest(f"{foreign_shards}/part-000{{1..2}}.tar")
    assert part.num_samples == 8
    assert part.class_counts == (0, 4, 4)
    assert part.source["command"] == "resscale index"


def test_a_built_in_set_is_opened_by_its_name() -> None:
    assert open_manifest("builtin:digits/test").num_samples == 360


@pytest.mark.parametrize("what", ["{}", "{}/*.tar"])
def test_shards_that_are_being_packed_are_refused(foreign_shards: Path, what: str) -> None:
    (foreign_shards / ".pack.jsonl").touch()
    with pytest.raises(DataFormatError, match="is still being packed"):
        open_manifest(what.format(foreign_shards))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("{}/none", "there is no such folder"),
        ("{}", r"it holds no \.tar file"),
        ("{}/manifest.json", r"it holds no \.tar file"),
        ("{}/*.tar", r"\*\.tar is missing"),
    ],
)
def test_nothing_there(tmp_path: Path, what: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        open_manifest(what.format(tmp_path))


def test_nothing_at_an_address(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        with pytest.raises(UserInputError, match="none is listed there"):
            open_manifest(server.url)
        with pytest.raises(DataFormatError, match=r"a/manifest\.json does not exist"):
            open_manifest(f"{server.url}/a/manifest.json")


def test_a_damaged_manifest_is_not_passed_over(foreign_shards: Path) -> None:
    (foreign_shards / "manifest.json").write_text("{")
    for what in (f"{foreign_shards}", f"{foreign_shards}/*.tar"):
        with pytest.raises(DataFormatError, match="is not a resscale manifest"):
            open_manifest(what)
    assert isinstance(index_shards(expand_shards([str(foreign_shards)])), Manifest)
