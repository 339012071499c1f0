"""Clocks of nodes compared."""

import threading
import time

import pytest

from resscale.cluster.doctor.clock import ClockServer, Offset, judge_clocks, measure_offset
from resscale.cluster.doctor.finding import Rank

N2 = Rank(2, "n2")


def test_clocks_that_agree_are_well() -> None:
    (found,) = judge_clocks({N2: Offset(0.0004, 0.0001), Rank(4, "n3"): Offset(-0.002, 0.0003)})
    assert (found.level, found.text) == ("ok", "3 hosts within 2.00 ms (± 0.30 ms)")


@pytest.mark.parametrize(
    ("ahead_s", "error_s", "level"),
    [
        (1.5, 0.1, "warn"),
        (-1.5, 0.1, "warn"),
        (61.0, 0.1, "fail"),
        (1.05, 0.1, "ok"),  # may be the measurement's own error
        (30.0, 40.0, "ok"),
    ],
)
def test_a_clock_that_is_off_by_more_than_the_error_is_told(
    ahead_s: float, error_s: float, level: str
) -> None:
    assert judge_clocks({N2: Offset(ahead_s, error_s)})[0].level == level


def test_a_fault_names_the_host_and_the_way() -> None:
    (found,) = judge_clocks({N2: Offset(-90.0, 0.1)})
    assert found.text == "the clock of n2 is 90.0 s behind rank 0's"
    assert "ahead of" in judge_clocks({N2: Offset(90.0, 0.1)})[0].text


def test_nothing_is_said_of_one_host() -> None:
    assert judge_clocks({}) == []


def test_a_clock_is_compared_with_itself_over_a_real_connection() -> None:
    with ClockServer() as server:
        offset = measure_offset("127.0.0.1", server.port)
    # One clock: what it seems to be off is within the error that is stated.
    assert abs(offset.ahead_s) <= offset.error_s + 1e-6


def test_a_clock_ahead_is_measured_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    with ClockServer() as server:
        # The server answers in a thread of this process: it is told apart by who asks.
        here = threading.get_ident()
        monkeypatch.setattr(
            time, "time", lambda: real() + (5.0 if threading.get_ident() == here else 0.0)
        )
        offset = measure_offset("127.0.0.1", server.port)
    assert abs(offset.ahead_s - 5.0) <= offset.error_s + 1e-6


def test_a_server_that_has_gone_is_an_error() -> None:
    with ClockServer() as server:
        pass
    with pytest.raises(OSError, match="refused"):
        measure_offset("127.0.0.1", server.port)
