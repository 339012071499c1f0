"""A file read by ranges: right bytes, few requests, gaps left out where they are long."""

import hashlib
import random

import pytest

from resscale.data.range_file import GAP_WORTH_READING, RangeFile, next_range

MB = 1 << 20


class Ranges:
    """Serves ranges of bytes and notes them."""

    def __init__(self, size: int) -> None:
        self.content = random.Random(3).randbytes(size)
        self.asked: list[tuple[int, int]] = []

    def __call__(self, start: int, stop: int) -> bytes:
        assert start < stop <= len(self.content)
        self.asked.append((start, stop))
        return self.content[start:stop]


def test_sequential_reading_asks_for_more_each_time() -> None:
    assert next_range(0, 0, 0, whole=False) == (0, MB)
    assert next_range(MB, MB, MB, whole=False) == (MB, 2 * MB)
    assert next_range(9 * MB, 9 * MB, 8 * MB, whole=False) == (9 * MB, 8 * MB)


def test_a_short_gap_is_read_and_a_long_one_left_out() -> None:
    end = 5 * MB
    assert next_range(end + GAP_WORTH_READING, end, MB, whole=False) == (end, 2 * MB)
    far = end + GAP_WORTH_READING + 1
    assert next_range(far, end, MB, whole=False) == (far, 65_536)
    assert next_range(far, end, MB, whole=True) == (end, 2 * MB)


def test_any_reads_give_the_bytes_of_the_file() -> None:
    ranges = Ranges(20 * MB)
    file = RangeFile(ranges, 20 * MB)
    draw = random.Random(5)
    for _ in range(200):
        start, size = draw.randrange(20 * MB), draw.randrange(3 * MB)
        assert file.seek(start) == start
        assert file.read(size) == ranges.content[start : start + size]
        assert file.tell() == min(start + size, 20 * MB)


def test_positions_count_from_the_start_from_here_and_from_the_end() -> None:
    ranges = Ranges(100)
    file = RangeFile(ranges, 100)
    assert file.read(10) == ranges.content[:10]
    assert file.seek(5, 1) == 15
    assert file.seek(-7, 2) == 93
    assert file.read() == ranges.content[93:]
    assert file.read(1) == b""
    assert ranges.asked == [(0, 100)]


def test_a_file_read_on_and_on_has_a_checksum() -> None:
    ranges = Ranges(6 * MB)
    file = RangeFile(ranges, 6 * MB)
    for start in range(0, 6 * MB, 100_000):
        file.seek(start)
        file.read(512)
    assert ranges.asked == [(0, MB), (MB, 3 * MB), (3 * MB, 6 * MB)]  # 1, 2 and the rest of 4 MB
    assert file.finish() == hashlib.sha256(ranges.content).hexdigest()


def test_long_gaps_are_left_out_and_the_checksum_with_them() -> None:
    ranges = Ranges(30 * MB)
    file = RangeFile(ranges, 30 * MB)
    for start in (0, 10 * MB, 20 * MB):
        file.seek(start)
        file.read(512)
    assert ranges.asked == [(0, MB), *((n * MB, n * MB + 65_536) for n in (10, 20))]
    assert file.finish() == ""


def test_a_whole_reading_leaves_nothing_out() -> None:
    ranges = Ranges(30 * MB)
    file = RangeFile(ranges, 30 * MB, whole=True)
    file.seek(20 * MB)
    assert file.read(512) == ranges.content[20 * MB :][:512]
    assert file.finish() == hashlib.sha256(ranges.content).hexdigest()
    assert sum(stop - start for start, stop in ranges.asked) == 30 * MB  # each byte once


@pytest.mark.parametrize("rest", [GAP_WORTH_READING, GAP_WORTH_READING + 1])
def test_a_short_rest_is_read_for_the_checksum(rest: int) -> None:
    ranges = Ranges(MB + rest)
    file = RangeFile(ranges, MB + rest)
    file.read(10)
    known = file.finish() == hashlib.sha256(ranges.content).hexdigest()
    assert known == (rest <= GAP_WORTH_READING)


def test_an_empty_file() -> None:
    file = RangeFile(Ranges(0), 0)
    assert file.read(512) == b""
    assert file.finish() == hashlib.sha256(b"").hexdigest()
