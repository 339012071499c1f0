"""Eviction: the longest unused goes first, and nothing that somebody needs."""

import fcntl
import os
import signal
from pathlib import Path

import pytest

from resscale.data.cache_entry import CacheEntry, CacheSource
from resscale.data.cache_lease import Lease
from resscale.data.cache_room import choose_victims, make_room

SOURCES = [CacheSource(f"https://host/{number}.tar", 100, "v") for number in range(5)]


def entries(*used_at: float) -> list[CacheEntry]:
    """Entries of 100 bytes, with the names of their numbers."""
    return [
        CacheEntry(Path(f"{number}"), f"{number}", 100, at, False)
        for number, at in enumerate(used_at)
    ]


@pytest.mark.parametrize(
    ("excess", "kept", "gone"),
    [
        (0, set(), []),
        (1, set(), ["1"]),  # used at 10: the longest ago
        (100, set(), ["1"]),
        (101, set(), ["1", "2"]),
        (101, {"1"}, ["2", "0"]),
        (300, set(), ["1", "2", "0"]),
        (201, {"0"}, None),  # 1 and 2 have 200 bytes
        (301, set(), None),
    ],
)
def test_the_longest_unused_goes_first(excess: int, kept: set[str], gone: list[str] | None) -> None:
    victims = choose_victims(entries(30.0, 10.0, 20.0), excess, kept)
    assert (None if victims is None else [victim.key for victim in victims]) == gone


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache of five files of 100 bytes; file n was used n seconds after the first."""
    for number, source in enumerate(SOURCES):
        (tmp_path / source.file_name).write_bytes(bytes(100))
        os.utime(tmp_path / source.file_name, (1e9 + number, 1e9 + number))
    return tmp_path


def there(folder: Path) -> list[int]:
    return [n for n, source in enumerate(SOURCES) if (folder / source.file_name).exists()]


def test_a_cache_is_brought_within_its_limit(folder: Path) -> None:
    assert make_room(folder, 500, "own")
    assert there(folder) == [0, 1, 2, 3, 4]
    assert make_room(folder, 399, "own")
    assert there(folder) == [2, 3, 4]  # 500 - 399 = 101 bytes: two files
    assert make_room(folder, 399, "own", more_bytes=50)
    assert there(folder) == [3, 4]


def test_what_a_living_process_needs_stays(folder: Path) -> None:
    lease = Lease(folder)
    lease.publish([SOURCES[0].key, SOURCES[1].key])
    assert make_room(folder, 300, "own")
    assert there(folder) == [0, 1, 4]
    assert not make_room(folder, 100, "own")
    assert there(folder) == [0, 1, 4]  # not enough could go, so nothing goes in vain
    lease.close()
    assert make_room(folder, 100, "own")
    assert there(folder) == [4]


def test_the_file_that_room_is_made_for_stays(folder: Path) -> None:
    assert make_room(folder, 100, SOURCES[0].key)
    assert there(folder) == [0]


def test_a_download_under_way_stays_and_one_left_behind_goes(folder: Path) -> None:
    part = folder / CacheSource("https://host/9.tar", 300, "v").part_name()
    part.write_bytes(b"1")
    os.utime(part, (1, 1))
    holder = os.open(part, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert make_room(folder, 600, "own")  # 500 + 300, as it will have in the end
    assert part.exists()
    assert there(folder) == [2, 3, 4]
    fcntl.flock(holder, fcntl.LOCK_UN)
    assert make_room(folder, 400, "own")
    assert not part.exists()
    assert there(folder) == [2, 3, 4]
    os.close(holder)


def test_an_evicted_file_stays_readable_where_it_is_open(folder: Path) -> None:
    reader = os.open(folder / SOURCES[0].file_name, os.O_RDONLY)
    assert make_room(folder, 0, "own")
    assert there(folder) == []
    assert os.pread(reader, 200, 0) == bytes(100)
    os.close(reader)


def test_a_process_forked_while_room_is_made_holds_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / SOURCES[0].part_name()
    part.touch()
    children = []
    flock = fcntl.flock

    def forking(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        if operation == fcntl.LOCK_EX | fcntl.LOCK_NB and not children:
            children.append(os.fork())
            if not children[0]:
                signal.pause()

    monkeypatch.setattr(fcntl, "flock", forking)
    with part.open() as file:
        make_room(tmp_path, 50, SOURCES[1].key)  # 100 bytes to come: the part is looked at
        monkeypatch.undo()
        assert len(children) == 1
        try:
            flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.kill(children[0], signal.SIGKILL)
            os.waitpid(children[0], 0)
