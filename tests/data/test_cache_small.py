"""Small files in the cache: loaded by one of a node, kept for as long as they hold."""

import math
import os
import threading
import time
from pathlib import Path

import pytest

from resscale.data.cache_entry import CacheSource
from resscale.data.cache_small import keep_small, remove_torn_small

SOURCE = CacheSource("https://host/a.index.npz", 0, "v")


def test_threads_that_miss_the_same_file_load_it_once(tmp_path: Path) -> None:
    loads: list[bytes] = []
    found: list[bytes] = []

    def load() -> bytes:
        time.sleep(0.05)  # the others come meanwhile
        loads.append(b"index")
        return b"index"

    def read() -> None:
        found.append(keep_small(tmp_path, SOURCE, load, math.inf))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [b"index"] * 4
    assert len(loads) == 1


def test_what_is_too_old_is_loaded_anew(tmp_path: Path) -> None:
    assert keep_small(tmp_path, SOURCE, lambda: b"old", 100) == b"old"
    assert keep_small(tmp_path, SOURCE, lambda: b"new", 100) == b"old"
    before = time.time() - 101
    os.utime(tmp_path / SOURCE.file_name, (before, before))
    assert keep_small(tmp_path, SOURCE, lambda: b"new", math.inf) == b"old"
    assert keep_small(tmp_path, SOURCE, lambda: b"new", 100) == b"new"


def test_an_error_in_loading_is_handed_on_and_nothing_is_kept(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        keep_small(tmp_path, SOURCE, fail, math.inf)
    assert keep_small(tmp_path, SOURCE, lambda: b"index", math.inf) == b"index"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    for _ in range(2):
        assert keep_small(tmp_path / "none", SOURCE, lambda: b"index", math.inf) == b"index"


def test_what_killed_processes_have_left_goes_after_an_hour(tmp_path: Path) -> None:
    for name, age_s in (("old", 3700), ("young", 3500)):
        (tmp_path / f".{name}.small").touch()
        os.utime(tmp_path / f".{name}.small", (time.time() - age_s,) * 2)
    remove_torn_small(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".young.small"]
