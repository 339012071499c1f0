"""`benchmarks/allreduce_model.py`: the arithmetic of the scaling model."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from resscale.models import count_macs, create_model

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "allreduce_model.py"


@pytest.fixture(scope="module")
def model() -> ModuleType:
    """The script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("allreduce_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_ring_sends_nearly_twice_the_bytes(model: ModuleType) -> None:
    # 4 ranks: 6 steps of a quarter of 800 bytes at 100 bytes/s, and 6 delays of 1 s.
    assert model.ring_s(800, 4, 100, 1.0) == pytest.approx(6 * 2 + 6)
    assert model.ring_s(800, 1, 100, 1.0) == 0


def test_trees_send_twice_the_bytes_with_few_delays(model: ModuleType) -> None:
    # 5 ranks are 3 levels: up and down 800 bytes at 100 bytes/s, and 3 delays each way.
    assert model.trees_s(800, 5, 100, 1.0) == pytest.approx(16 + 6)
    assert model.trees_s(800, 1, 100, 1.0) == 0


def test_two_levels_add_up_and_the_network_takes_the_faster_way(model: ModuleType) -> None:
    def cluster(nodes: int) -> object:
        return model.Cluster(nodes, 100.0, 2, 1000.0, network_delay_s=1.0, gpu_delay_s=0.0)

    # Inside 2 GPUs: 800 bytes at 1000 bytes/s. Between 2 nodes a ring takes 8 + 2 s, trees 16 + 2.
    assert model.all_reduce_s(800, cluster(2)) == pytest.approx(0.8 + 10)
    # Between 64 nodes the ring has 126 delays, the trees 12.
    assert model.all_reduce_s(800, cluster(64)) == pytest.approx(0.8 + 16 + 12)


def test_a_bucket_closes_with_the_gradient_that_fills_it(model: ModuleType) -> None:
    sizes = [3, 4, 10, 9, 1, 25, 2]
    assert model.fill_buckets(sizes, 5, 20) == [[0, 1], [2, 3, 4], [5], [6]]


def test_what_outlasts_backward_is_exposed(model: ModuleType) -> None:
    # Bucket 1 is sent from 1 to 3; bucket 2 is ready at 2, waits, and is sent from 3 to 7.
    assert model.exposed_s([1, 2], [2, 4], 5) == 2
    assert model.exposed_s([1, 2], [2, 4], 7) == 0


def test_the_last_bucket_is_never_hidden(model: ModuleType) -> None:
    assert model.exposed_s([1, 10], [2, 0.5], 10) == 0.5


def test_the_break_even_batch_is_the_fewest_images_that_hide_all_but_the_last_bucket(
    model: ModuleType,
) -> None:
    # Backward: the second layer first. 1 MiB each fills a bucket only in the first place; both
    # layers have as many operations, 4 · 10 per image at 100 per second: 0.4 s.
    layers = [model.Layer(2**18, 10), model.Layer(2**18, 10)]
    # Two nodes of a GPU: a ring sends 1 MiB in 2 s, in each of both buckets.
    cluster = model.Cluster(2, 2**19, 1, network_delay_s=0.0)
    step = model.model_step(layers, 4, cluster, flops_per_s=100.0)
    assert step.compute == pytest.approx(6 * 20 * 4 / 100)
    assert step.communication == pytest.approx(4)
    # Ready after 1.6 and 3.2 s: sent until 3.6 and 5.6 s, and backward ends at 3.2 s.
    assert step.exposed == pytest.approx(2.4)
    assert not step.hidden
    # Hidden once the second half of backward, 0.4 s an image, lasts 2 s.
    assert model.break_even_batch(layers, cluster, flops_per_s=100.0) == 5
    assert model.break_even_batch(layers, cluster, flops_per_s=100.0, value_bytes=2) == 3


def test_a_network_that_is_too_slow_never_breaks_even(model: ModuleType) -> None:
    layers = [model.Layer(2**18, 1), model.Layer(2**18, 1)]
    cluster = model.Cluster(2, 1.0, 1)
    assert model.break_even_batch(layers, cluster, flops_per_s=1e12) is None


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "resnet20_cifar"])
def test_layers_have_all_parameters_and_operations_of_the_net(model: ModuleType, name: str) -> None:
    net = create_model(name)
    layers = model.layers_of(name, 64)
    assert sum(layer.num_parameters for layer in layers) == sum(p.numel() for p in net.parameters())
    assert sum(layer.macs for layer in layers) == count_macs(net, 64)


def test_a_resnet_s_buckets_begin_with_its_last_layer(model: ModuleType) -> None:
    layers = model.layers_of("resnet50", 64)
    sizes = [4.0 * layer.num_parameters for layer in reversed(layers)]
    # The classifier's 2,049,000 values are more than 1 MiB: a bucket of its own.
    assert sizes[0] == 4 * 2_049_000
    assert model.fill_buckets(sizes)[0] == [0]


def test_the_script_prints_a_row_per_link_in_three_tables() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--model", "resnet18"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    rows = [line for line in done.stdout.splitlines() if line.startswith("| 8 × 400 Gb/s |")]
    assert len(rows) == 3
    assert "44.6 MiB of fp32 gradients" in done.stdout  # 11,689,512 values of 4 bytes
