"""How fast a run is, from intervals with known numbers."""

import pytest

from resscale.training.interval import Interval, RankSums
from resscale.training.speed import Speed
from resscale.training.throughput import Times


def interval(*own_s: float, memory_bytes: float = 1e9) -> Interval:
    """What ranks with so much time of their own per step measured."""
    return Interval(tuple(RankSums(0, 0, 0, 0, 0, own, memory_bytes) for own in own_s), 0, ())


def test_one_interval_of_two_ranks() -> None:
    speed = Speed(["node-a", "node-b"], peak_flops_per_s=1e12)
    # 2 steps of 64 images in 0.5 s; 100e6 MACs an image.
    values = speed.add(interval(0.1, 0.2), Times((0.2, 0.3), 0.1), 128, 0.5, 100_000_000)
    assert values == {
        "speed/images_per_s_per_rank": 128.0,  # 128 / 0.5 s / 2 ranks
        "speed/memory_bytes": 1e9,
        "speed/slowest_rank": 1.0,
        "speed/slowest_ratio": 2.0,  # 0.2 / 0.1
        "speed/step_s_p50": 0.2,
        "speed/step_s_p90": 0.3,
        "speed/step_s_p99": 0.3,
        # 64 images of the rank · 6 · 100e6 operations in 0.5 s, of 1e12: 0.0768
        "speed/mfu": pytest.approx(64 * 6 * 100e6 / 0.5 / 1e12),
    }


def test_the_summary_is_that_of_the_whole_run() -> None:
    speed = Speed(["node-a", "node-b"], peak_flops_per_s=1e12)
    speed.add(interval(0.1, 0.2), Times((0.2, 0.3), 0.1), 128, 0.5, 100_000_000)
    speed.begin_epoch()
    fuller = interval(0.4, 0.2, memory_bytes=3e9)
    speed.add(fuller, Times((1.0,), 0.4), 64, 1.0, 100_000_000)
    assert speed.summary() == {
        "images_per_s": 128.0,  # 192 in 1.5 s
        "images_per_s_per_rank": 64.0,
        "step_time_s": {"p50": 1.0, "p90": 1.0, "p99": 1.0},  # of the newest epoch
        "mfu": pytest.approx(96 * 6 * 100e6 / 1.5 / 1e12),
        "memory_bytes": 3_000_000_000,
        # Rank 0: 2 · 0.1 + 0.4 = 0.6 s; rank 1: 2 · 0.2 + 0.2 = 0.6 s: the first of equals.
        "slowest_rank": {"rank": 0, "host": "node-a", "ratio": 1.0},
    }


def test_without_a_peak_or_a_known_cost_there_is_no_mfu() -> None:
    for peak, macs in ((None, 100), (1e12, None)):
        speed = Speed(["node-a"], peak)
        assert "speed/mfu" not in speed.add(interval(0.1), Times((0.1,), 0.1), 64, 0.1, macs)
        assert speed.summary()["mfu"] is None


def test_nothing_measured_is_said_as_nothing() -> None:
    assert Speed(["node-a"]).summary() == {
        "images_per_s": 0.0,
        "images_per_s_per_rank": 0.0,
        "step_time_s": None,
        "mfu": None,
        "memory_bytes": None,
        "slowest_rank": None,
    }
