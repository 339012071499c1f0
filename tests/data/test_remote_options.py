"""Waits before tries."""

import pytest

from resscale.data.remote_options import RemoteOptions, draw_wait, wait_before
from resscale.errors import UserInputError

OPTIONS = RemoteOptions(first_wait_s=0.5, most_wait_s=30)


@pytest.mark.parametrize(
    ("attempt", "draw", "waited"),
    [
        (1, 0.0, 0.25),  # 0.5 × (0.5 + 0)
        (1, 0.5, 0.375),  # 0.5 × (0.5 + 0.25)
        (4, 0.0, 2.0),  # 0.5 × 2^3 × 0.5
        (7, 0.0, 15.0),  # 0.5 × 2^6 = 32, cut to 30, × 0.5
        (5000, 0.0, 15.0),  # 2^5000 is no float
    ],
)
def test_waits_double_up_to_the_longest(attempt: int, draw: float, waited: float) -> None:
    assert wait_before(attempt, OPTIONS, 0.0, draw) == waited


def test_the_servers_wish_is_kept_up_to_the_longest_wait() -> None:
    assert wait_before(1, OPTIONS, 7.0, 0.0) == 7.0
    assert wait_before(1, OPTIONS, 3600.0, 0.0) == 30.0
    assert wait_before(7, OPTIONS, 1.0, 0.0) == 15.0


def test_those_that_fail_together_do_not_return_together() -> None:
    waits = {draw_wait(3, OPTIONS, 0.0) for _ in range(20)}
    assert len(waits) > 1
    assert all(1.0 <= waited < 2.0 for waited in waits)  # 0.5 × 2^2 × (0.5 to 1)


def test_a_patience_of_nothing_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"read_timeout_s=0 must be above 0 seconds"):
        RemoteOptions(read_timeout_s=0)
