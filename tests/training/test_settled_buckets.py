"""The first step of a process is summed as its later ones: DDP keeps its layout."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# Three ranks: two numbers have only one sum, whatever the order.
RANK = """
import json, sys, torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from resscale.models import create_model
from resscale.training.strategy import _buffers_option, settle_buckets
folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=3)
images = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(rank))
count = lambda one, other: sum(int((a != b).sum()) for a, b in zip(one, other))
found = {}
for settled in (True, False):
    torch.manual_seed(0)
    net = create_model("resnet8_cifar", num_classes=10, in_channels=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = DistributedDataParallel(net, **{_buffers_option(): False}, gradient_as_bucket_view=True)
    random_state = torch.get_rng_state()
    if settled:
        settle_buckets(model)
        # Nothing else is touched.
        assert torch.equal(random_state, torch.get_rng_state())
        assert all(parameter.grad is None for parameter in net.parameters())
        assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    steps = []
    for _ in range(3):
        net.zero_grad()
        net.load_state_dict(before)
        model(images).square().mean().backward()
        steps.append([parameter.grad.clone() for parameter in net.parameters()])
    found[settled] = [count(steps[0], steps[1]), count(steps[1], steps[2])]
print(json.dumps([found[True], found[False]]))
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def differing(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    """How many gradients differ between the first and second, and the second and third step.

    First with settled buckets, then as torch does it.
    """
    folder = tmp_path_factory.mktemp("ranks")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder), str(rank)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(3)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    found: list[list[int]] = json.loads(said[0])
    return found


def test_the_first_step_is_summed_as_all_others(differing: list[list[int]]) -> None:
    assert differing[0] == [0, 0]


def test_torch_alone_sums_the_first_step_in_another_order(differing: list[list[int]]) -> None:
    # Once this fails, torch does it by itself, and `settle_buckets` may go.
    first, later = differing[1]
    assert first > 0
    assert later == 0
