"""Built-in data sets: packed once into the cache, by several processes at once if need be."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resscale.cli_data import run_pack
from resscale.data.builtin import cache_folder, resolve
from resscale.data.manifest import Manifest
from resscale.errors import UserInputError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_other_locations_come_back_unchanged() -> None:
    assert resolve("shards/train") == "shards/train"
    assert resolve("https://example.org/train") == "https://example.org/train"


def test_unknown_name_suggests_the_nearest(cache: Path) -> None:
    with pytest.raises(UserInputError, match="Did you mean 'builtin:digits/train'"):
        resolve("builtin:digit/tran")


def test_shards_are_those_of_the_command(cache: Path, tmp_path: Path, contents) -> None:
    folder = Path(resolve("builtin:digits/train"))
    assert folder.is_relative_to(cache)
    Manifest.load(folder).check_sizes()
    before = folder.stat().st_mtime_ns
    assert resolve("builtin:digits/test") == str(folder.parent / "test")
    assert folder.stat().st_mtime_ns == before  # packed once
    run_pack(["digits", str(tmp_path / "out"), "--processes", "1"])
    assert contents(tmp_path / "out") == contents(folder.parent)


def test_processes_that_ask_at_once_agree(cache: Path) -> None:
    code = "from resscale.data.builtin import resolve; print(resolve('builtin:digits/test'))"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = {process.communicate(timeout=60)[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    (folder,) = answers
    Manifest.load(folder).check_sizes()
    assert len(list(cache.iterdir())) == 1  # the losers' temporary folders are gone


def test_leftovers_of_killed_processes_are_removed_when_old(cache: Path) -> None:
    folder = Path(resolve("builtin:digits/test"))
    name = folder.parent.name
    old, recent = cache / f".{name}-old", cache / f".{name}-new"
    for leftover in (old, recent):
        leftover.mkdir()
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    (folder / "manifest.json").unlink()  # a part removed by hand is packed again
    Manifest.load(resolve("builtin:digits/test")).check_sizes()
    assert not old.exists()
    assert recent.exists()  # its owner may be at work


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESSCALE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserInputError, match="Set RESSCALE_CACHE to a folder that you can write"):
        resolve("builtin:digits/train")


def test_default_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESSCALE_CACHE", raising=False)
    assert cache_folder().name == "resscale"
