"""`benchmarks/shuffle_quality.py`: distances, correlations and the table."""

import numpy as np
import pytest
from shuffle_quality import correlation, distance, main, places

from resscale.data.order import EpochOrder


def test_places_are_the_steps_of_samples() -> None:
    order = EpochOrder([4, 3], global_batch_size=3, shuffle="none")
    assert places(order).tolist() == [0, 0, 0, 1, 1, 1, -1]  # the seventh is left out


def test_a_full_shuffle_has_a_distance_of_one_and_no_correlation() -> None:
    order = EpochOrder([100] * 50, global_batch_size=50, shuffle="full")
    one, other = places(order), places(order.at_epoch(1))
    # 5,000 samples: both are within 5 standard errors, about 1/√5000 = 0.014 each.
    assert distance(one, order.num_steps) == pytest.approx(1, abs=0.07)
    assert correlation(one, other) == pytest.approx(0, abs=0.07)
    assert correlation(one, one) == pytest.approx(1)
    assert distance(np.array([0, 0, 1, 1]), 2) == pytest.approx(1 / 3 / (2 / 3))  # of 0, 1, 0


def test_the_table_has_shuffled_and_sorted_shards(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--shards", "16", "--samples_per_shard", "20", "--classes", "8"]
    main([*shape, "--global_batch_size", "64", "--micro_batch_size", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| shuffled | ") for line in lines) == 10
    worst = next(line for line in lines if line.startswith("| by class | none |  | 1 |"))
    assert worst.endswith(" | 1.00 |")  # the same in each epoch
