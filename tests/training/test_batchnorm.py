"""BatchNorm's running statistics are averaged over the ranks."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

from resscale.training.batchnorm import average_batchnorm_statistics

# Two BatchNorms, one of them without statistics; each rank's start from its own number.
AVERAGE = """
import json, sys, torch
from torch import distributed, nn
from resscale.training.batchnorm import average_batchnorm_statistics
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
average_batchnorm_statistics(nn.Sequential(first, bare, nn.Sequential(second, linear)))
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
    average_batchnorm_statistics(layer)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])
