"""BatchNorm's running statistics are averaged over the ranks."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from resscale.training.batchnorm import (
    StepStatistics,
    average_batchnorm_statistics,
    gather_rank_statistics,
    restore_rank_statistics,
)

# Two BatchNorms, one of them without statistics; each rank's start from its own number.
AVERAGE = """
import json, sys, torch
from torch import distributed, nn
from resscale.training.batchnorm import (
    average_batchnorm_statistics, gather_rank_statistics, restore_rank_statistics
)
folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
first, second = nn.BatchNorm2d(2), nn.BatchNorm1d(3)
bare = nn.BatchNorm2d(2, track_running_stats=False)
linear = nn.Linear(1, 1, bias=False)
first.running_mean.copy_(torch.tensor([1.0, 2.0]) * (rank + 1))
first.running_var.copy_(torch.tensor([4.0, 8.0]) * (rank + 1))
second.running_mean.fill_(10.0 * rank)
second.num_batches_tracked.fill_(5)
linear.weight.data.fill_(float(rank))
net = nn.Sequential(first, bare, nn.Sequential(second, linear))
before = [first.running_mean.clone(), second.running_mean.clone()]
table = gather_rank_statistics(net)
average_batchnorm_statistics(net)
averaged = [first.running_mean.clone(), second.running_mean.clone()]
restore_rank_statistics(net, table, rank, 2)
restored = [first.running_mean.clone(), second.running_mean.clone()]
assert all(torch.equal(*pair) for pair in zip(before, restored)), restored
restore_rank_statistics(net, table, rank, 3)  # on another number of ranks: the average stays
average_batchnorm_statistics(net)
assert all(torch.equal(*pair) for pair in zip(averaged, [first.running_mean, second.running_mean]))
average_batchnorm_statistics(linear)  # nothing to average: no collective, no error
print(json.dumps({
    "first": [first.running_mean.tolist(), first.running_var.tolist()],
    "second": [second.running_mean.tolist(), second.running_var.tolist()],
    "batches": int(second.num_batches_tracked),
    "linear": float(linear.weight),
}))
distributed.destroy_process_group()
"""


def test_two_ranks_end_with_the_mean_of_their_statistics(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", AVERAGE, str(tmp_path), str(rank)], stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    said = [json.loads(rank.communicate(timeout=120)[0]) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    for rank, found in enumerate(said):
        assert found["first"] == [[1.5, 3.0], [6.0, 12.0]]  # (1 + 2)/2, (2 + 4)/2; (4 + 8)/2 ...
        assert found["second"] == [[5.0] * 3, [1.0] * 3]  # (0 + 10)/2; both began at variance 1
        assert found["batches"] == 5
        assert found["linear"] == rank  # weights are not touched


def test_a_process_alone_keeps_its_statistics() -> None:
    layer = nn.BatchNorm2d(2)
    layer(torch.rand(4, 2, 3, 3))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert gather_rank_statistics(layer) is None
    average_batchnorm_statistics(layer)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


def test_accumulated_micro_batches_count_as_if_each_had_a_rank_of_its_own() -> None:
    torch.manual_seed(0)
    micro_batches = [torch.randn(8, 2, 3, 3) * scale + 1 for scale in (1, 2, 4)]
    ranks = [nn.BatchNorm2d(2, momentum=0.3) for _ in micro_batches]
    for layer, images in zip(ranks, micro_batches, strict=True):
        layer(images)
    mean = sum(layer.running_mean for layer in ranks) / 3
    var = sum(layer.running_var for layer in ranks) / 3

    alone = nn.BatchNorm2d(2, momentum=0.3)
    statistics = StepStatistics(nn.Sequential(alone))
    for number, images in enumerate(micro_batches):
        statistics.before_forward(number, 3)
        alone(images).sum().backward()
        statistics.after_forward(number, 3)
    torch.testing.assert_close(alone.running_mean, mean)
    torch.testing.assert_close(alone.running_var, var)
    assert int(alone.num_batches_tracked) == 1  # one update, as on each of three ranks


def test_a_second_step_goes_on_from_the_first() -> None:
    layer = nn.BatchNorm1d(1, momentum=0.5)
    statistics = StepStatistics(layer)
    for number, value in enumerate((2.0, 4.0, 6.0, 8.0)):
        statistics.before_forward(number % 2, 2)
        layer(torch.full((2, 1), value))
        statistics.after_forward(number % 2, 2)
    # 0.5 × 0 + 0.5 × (2 + 4)/2 = 1.5; 0.5 × 1.5 + 0.5 × (6 + 8)/2 = 4.25
    assert layer.running_mean.tolist() == [4.25]
    assert int(layer.num_batches_tracked) == 2


def test_without_accumulation_nothing_is_touched() -> None:
    layer = nn.BatchNorm1d(1, momentum=0.5)
    statistics = StepStatistics(layer)
    statistics.before_forward(0, 1)
    layer(torch.full((2, 1), 2.0))
    statistics.after_forward(0, 1)
    assert layer.running_mean.tolist() == [1.0]
    assert statistics._before == statistics._sums == []


def test_a_net_without_batchnorm_can_accumulate() -> None:
    statistics = StepStatistics(nn.Linear(1, 1))
    for number in range(2):
        statistics.before_forward(number, 2)
        statistics.after_forward(number, 2)


def test_ranks_statistics_of_another_number_of_ranks_are_left_alone() -> None:
    layer = nn.BatchNorm2d(2)
    table = torch.full((2, 4), 7.0)  # 2 ranks; 2 means and 2 variances
    restore_rank_statistics(layer, table, rank=0, world_size=1)
    assert layer.running_mean is not None
    assert layer.running_mean.tolist() == [0.0, 0.0]
    restore_rank_statistics(layer, table, rank=1, world_size=2)
    assert layer.running_mean.tolist() == [7.0, 7.0]
