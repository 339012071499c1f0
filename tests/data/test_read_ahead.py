"""Reads side by side: the results in order, errors in their place."""

import threading
import time

import pytest

from resscale.data.read_ahead import ReadAhead


def test_calls_run_side_by_side_and_results_keep_their_order() -> None:
    meeting = threading.Barrier(3, timeout=60)

    def met(item: int) -> int:
        meeting.wait()  # passes only when three calls are under way at once
        return item * item

    assert list(ReadAhead(3).map(met, range(6))) == [0, 1, 4, 9, 16, 25]


def test_an_error_comes_in_its_place() -> None:
    results = ReadAhead(2).map(lambda item: 12 // item, [4, 0, 3])
    assert next(results) == 3
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_the_threads_serve_many_maps() -> None:
    ahead = ReadAhead(2)
    served: set[int] = set()

    def number(item: int) -> int:
        served.add(threading.get_ident())
        return item

    assert [sum(ahead.map(number, range(n))) for n in range(5)] == [0, 0, 1, 3, 6]
    assert 1 <= len(served) <= 2


def test_threads_end_with_what_they_read_for() -> None:
    def there() -> int:
        return sum(each.name == "read-ahead" for each in threading.enumerate())

    before, ahead = there(), ReadAhead(3)
    assert list(ahead.map(str, range(9))) == [str(n) for n in range(9)]
    assert there() == before + 3
    del ahead
    while there() > before:
        time.sleep(0.01)
