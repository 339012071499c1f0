"""Shards without a manifest: indexed once, by one of several processes, and anew when changed."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fault_server import FaultServer, serve

from resscale.data.index_cache import cached_manifest
from resscale.data.manifest import MANIFEST_NAME, Manifest
from resscale.data.shard_patterns import expand_shards
from resscale.errors import DataFormatError, UserInputError

HALF_AN_HOUR_S = 1800


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "indexed"


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def make_old(cache: Path) -> None:
    """Let the answers about remote shards be half an hour old."""
    for stamp in cache.glob("*.json"):
        facts = json.loads(stamp.read_text())
        facts["asked_at_s"] -= HALF_AN_HOUR_S
        stamp.write_text(json.dumps(facts))


def tar_requests(server: FaultServer) -> int:
    return sum(each.path.endswith(".tar") for each in server.asked)


def test_local_shards_are_indexed_once(
    cache: Path, foreign_shards: Path, contents, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(foreign_shards)
    shards = expand_shards([str(foreign_shards)])
    manifest = cached_manifest(shards)
    manifest.check_sizes()
    assert contents(foreign_shards) == before  # nothing is written beside the shards
    assert manifest.num_samples == 12
    assert manifest.class_counts == (4, 4, 4)
    assert manifest.shard_location(2) == str(foreign_shards / "part-0002.tar")
    assert Path(manifest.root).parent == cache
    assert "3 shards in" in capsys.readouterr().err
    assert cached_manifest(shards) == manifest
    assert capsys.readouterr().err == ""
    assert len(entries(cache)) == 1


def test_nobody_waits_for_a_lock_where_local_shards_are_indexed_already(
    cache: Path, foreign_shards: Path
) -> None:
    shards = expand_shards([str(foreign_shards)])
    manifest = cached_manifest(shards)
    (lock,) = cache.glob("*.lock")
    with lock.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert cached_manifest(shards) == manifest


def test_a_local_shard_that_changes_is_noticed_at_once(cache: Path, foreign_shards: Path) -> None:
    shards = expand_shards([str(foreign_shards)])
    before = cached_manifest(shards)
    os.utime(shards[1], (1, 1))
    assert cached_manifest(shards).root != before.root
    shutil.copy(shards[0], shards[1])
    assert cached_manifest(shards).class_counts == (8, 0, 4)  # the second shard's are the first's


def test_remote_shards_are_asked_for_once_a_minute(cache: Path, foreign_shards: Path) -> None:
    with serve(foreign_shards) as server:
        shards = expand_shards([server.url])
        manifest = cached_manifest(shards)
        assert manifest.shard_location(0) == f"{server.url}/part-0000.tar"
        asked = tar_requests(server)
        assert cached_manifest(shards) == manifest
        assert tar_requests(server) == asked
        make_old(cache)
        assert cached_manifest(shards) == manifest
        assert tar_requests(server) == asked + 3  # the versions of three shards; no index is made
        os.utime(foreign_shards / "part-0001.tar", (1, 1))
        assert cached_manifest(shards) == manifest  # the last answer is a moment old
        make_old(cache)
        assert cached_manifest(shards).root != manifest.root


def test_processes_that_ask_at_once_index_once(cache: Path, foreign_shards: Path) -> None:
    code = (
        "import sys; from resscale.data.index_cache import cached_manifest;"
        "print(cached_manifest(sys.argv[1:]).root)"
    )
    with serve(foreign_shards) as server:
        shards = expand_shards([server.url])
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code, *shards],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        said = [process.communicate(timeout=120) for process in running]
        assert tar_requests(server) == 3 * 3  # of each: version twice, and its bytes
    (root,) = {out.strip() for out, _ in said}
    assert sum("are indexed once" in err for _, err in said) == 1
    Manifest.load(root).check_labels(3)


def test_what_a_killed_process_left_is_made_anew(cache: Path, foreign_shards: Path) -> None:
    shards = expand_shards([str(foreign_shards)])
    manifest = cached_manifest(shards)
    (Path(manifest.root) / MANIFEST_NAME).unlink()
    assert cached_manifest(shards) == manifest


def test_a_damaged_shard_leaves_nothing(cache: Path, foreign_shards: Path) -> None:
    path = foreign_shards / "part-0001.tar"
    path.write_bytes(path.read_bytes()[:-12_000])
    with pytest.raises(DataFormatError, match=r"part-0001\.tar is truncated"):
        cached_manifest(expand_shards([str(foreign_shards)]))
    assert entries(cache) == []


def test_a_stamp_of_something_else_is_passed_over(cache: Path, foreign_shards: Path) -> None:
    with serve(foreign_shards) as server:
        manifest = cached_manifest(shards := expand_shards([server.url]))
        for text in ("", "[]", "{}", '{"key": 3, "asked_at_s": "x"}'):
            next(cache.glob("*.json")).write_text(text)
            assert cached_manifest(shards) == manifest


def test_cache_that_cannot_be_written(
    foreign_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESSCALE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserInputError, match="Set RESSCALE_CACHE to a folder that you can write"):
        cached_manifest(expand_shards([str(foreign_shards)]))
