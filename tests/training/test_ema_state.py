"""The averaged network: its arithmetic, its keys, what it costs, and two ranks' equal bytes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from resscale import ImageClassifier, create_model
from resscale.errors import UserInputError
from resscale.training.ema_state import AveragedNetwork

CPU = torch.device("cpu")

# Each rank sees other images, so BatchNorm's statistics differ until they are averaged.
TWO_RANKS = """
import hashlib, json, sys, torch
from torch import distributed, nn
from resscale.training.ema_state import AveragedNetwork
folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
network = nn.Sequential(nn.BatchNorm1d(2))
averaged = AveragedNetwork(network)
averaged.attach(network, torch.device("cpu"))
network[0].running_mean.fill_(4.0 * (rank + 1))
averaged.update(0.75)
state = averaged.state_dict()
print(json.dumps({name: value.tolist() for name, value in state.items()}))
distributed.destroy_process_group()
"""


def following(network: nn.Module) -> AveragedNetwork:
    averaged = AveragedNetwork(network)
    averaged.attach(network, CPU)
    return averaged


def one_weight(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(value)
    return layer


def test_an_update_moves_by_one_minus_the_decay() -> None:
    layer = one_weight(1.0)
    averaged = following(layer)
    expected = []
    for weight, decay in ((2.0, 0.5), (3.5, 0.75), (9.0, 0.0), (100.0, 1.0)):
        layer.weight.data.fill_(weight)
        averaged.update(decay)
        expected.append(float(averaged.network.weight))
    # (1 + 2)/2; 0.75 × 1.5 + 0.25 × 3.5; all of it; nothing of it.
    assert expected == [1.5, 2.0, 9.0, 9.0]
    assert averaged.updates == 4


def test_batchnorms_statistics_are_averaged_and_its_counter_is_copied() -> None:
    layer = nn.BatchNorm1d(1)
    averaged = following(layer)
    layer.running_mean.fill_(8.0)
    layer.running_var.fill_(3.0)
    layer.num_batches_tracked.fill_(17)
    averaged.update(0.75)
    # 0.75 × 0 + 0.25 × 8, 0.75 × 1 + 0.25 × 3.
    assert (float(averaged.network.running_mean), float(averaged.network.running_var)) == (2, 1.5)
    assert int(averaged.network.num_batches_tracked) == 17


def test_training_a_net_gives_the_average_of_torchs_own_averaged_model() -> None:
    torch.manual_seed(0)
    network = create_model("resnet8_cifar", 4)
    averaged = following(network)
    peer = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    peer.update_parameters(network)  # its first update copies
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        network(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        averaged.update(0.9)
        peer.update_parameters(network)
    expected = peer.module.state_dict()
    for name, value in averaged.network.state_dict().items():
        # torch averages the counters too, and rounds them to 0.
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, expected[name]), name
            assert not torch.equal(value, network.state_dict()[name]), name


def test_the_average_of_bfloat16_weights_is_kept_in_float32() -> None:
    layer = one_weight(1.0).to(torch.bfloat16)
    averaged = following(layer)
    layer.weight.data.fill_(2.0)
    averaged.update(0.999)
    assert averaged.network.weight.dtype == torch.float32
    # bfloat16 keeps 8 bits and would stay at 1.
    assert float(averaged.network.weight) == pytest.approx(1.001, rel=1e-6)


def test_an_update_reads_nothing_off_the_device() -> None:
    class Record(TorchDispatchMode):
        seen: set[str] = set()  # noqa: RUF012 - one instance

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    network = create_model("resnet8_cifar", 10)
    averaged = following(network)
    with Record():
        averaged.update(0.9)
    # `item` and copies between devices are _local_scalar_dense and _to_copy.
    assert Record.seen == {"detach", "_foreach_lerp_", "_foreach_copy_"}


def test_the_keys_are_those_of_the_classifier() -> None:
    classifier = ImageClassifier("resnet8_cifar", 10, 1)
    assert list(following(classifier.model).state_dict()) == list(classifier.state_dict())


# torch's own compiler still imports what torch deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_compiled_network_leaves_no_trace_in_the_keys() -> None:
    layer = one_weight(3.0)
    averaged = following(torch.compile(layer))
    assert list(averaged.state_dict()) == ["model.weight"]
    layer.weight.data.fill_(5.0)
    averaged.update(0.5)
    assert float(averaged.state_dict()["model.weight"]) == 4.0


def test_the_network_that_is_followed_keeps_its_mode_its_gradients_and_its_values() -> None:
    network = create_model("resnet8_cifar", 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    averaged = following(network)
    for parameter in averaged.network.parameters():
        parameter.data.add_(1.0)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not averaged.network.training
    assert not any(parameter.requires_grad for parameter in averaged.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_memory_layout_of_the_network_is_kept() -> None:
    network = create_model("resnet8_cifar", 10).to(memory_format=torch.channels_last)
    averaged = following(network)
    averaged.load_state_dict(following(create_model("resnet8_cifar", 10)).state_dict())
    weight = averaged.network.get_parameter("conv1.weight")
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_what_is_saved_is_loaded_to_the_last_bit() -> None:
    network = create_model("resnet8_cifar", 10)
    first, second = following(network), following(create_model("resnet8_cifar", 10))
    network(torch.randn(2, 3, 8, 8))  # moves BatchNorm's statistics
    first.update(0.9)
    saved = {name: value.clone() for name, value in first.state_dict().items()}
    second.load_state_dict(saved)
    for name, value in second.state_dict().items():
        assert torch.equal(value, saved[name]), name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.weight": None}, r"averaged model\.weight is not there, the network's is \[1, 1\]"),
        ({"model.weight": torch.ones(1, 2)}, r"model\.weight is \[1, 2\], the network's is \[1, 1"),
    ],
)
def test_an_average_of_another_network_is_refused(
    change: dict[str, Tensor | None], said: str
) -> None:
    averaged = following(one_weight(1.0))
    state = {k: v for k, v in {**averaged.state_dict(), **change}.items() if v is not None}
    with pytest.raises(UserInputError, match=said):
        averaged.load_state_dict(state)


def test_two_ranks_hold_and_save_equal_statistics(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_RANKS, str(tmp_path), str(rank)], stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert said[0] == said[1]
    # Rank 0: 0.25 × 4 = 1, rank 1: 0.25 × 8 = 2.
    assert json.loads(said[0])["model.0.running_mean"] == [1.5, 1.5]
