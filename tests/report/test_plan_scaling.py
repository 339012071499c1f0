"""`resscale.report.plan_scaling`: the arithmetic of gradients on the wire against backward."""

import pytest

from resscale.models import count_macs, create_model
from resscale.models.meta import create_on_meta
from resscale.report.plan_scaling import (
    Cluster,
    Layer,
    all_reduce_s,
    break_even_batch,
    exposed_s,
    fill_buckets,
    layers_of,
    model_step,
    ring_s,
    trees_s,
)


def test_a_ring_sends_nearly_twice_the_bytes() -> None:
    # 4 ranks: 6 steps of a quarter of 800 bytes at 100 bytes/s, and 6 delays of 1 s.
    assert ring_s(800, 4, 100, 1.0) == pytest.approx(6 * 2 + 6)
    assert ring_s(800, 1, 100, 1.0) == 0


def test_trees_send_twice_the_bytes_with_few_delays() -> None:
    # 5 ranks are 3 levels: up and down 800 bytes at 100 bytes/s, and 3 delays each way.
    assert trees_s(800, 5, 100, 1.0) == pytest.approx(16 + 6)
    assert trees_s(800, 1, 100, 1.0) == 0


def test_two_levels_add_up_and_the_network_takes_the_faster_way() -> None:
    def cluster(nodes: int) -> Cluster:
        return Cluster(nodes, 100.0, 2, 1000.0, network_delay_s=1.0, gpu_delay_s=0.0)

    # Inside 2 GPUs: 800 bytes at 1000 bytes/s. Between 2 nodes a ring takes 8 + 2 s, trees 16 + 2.
    assert all_reduce_s(800, cluster(2)) == pytest.approx(0.8 + 10)
    # Between 64 nodes the ring has 126 delays, the trees 12.
    assert all_reduce_s(800, cluster(64)) == pytest.approx(0.8 + 16 + 12)


def test_a_bucket_closes_with_the_gradient_that_fills_it() -> None:
    sizes = [3, 4, 10, 9, 1, 25, 2]
    assert fill_buckets(sizes, 5, 20) == [[0, 1], [2, 3, 4], [5], [6]]


def test_what_outlasts_backward_is_exposed() -> None:
    # Bucket 1 is sent from 1 to 3; bucket 2 is ready at 2, waits, and is sent from 3 to 7.
    assert exposed_s([1, 2], [2, 4], 5) == 2
    assert exposed_s([1, 2], [2, 4], 7) == 0


def test_the_last_bucket_is_never_hidden() -> None:
    assert exposed_s([1, 10], [2, 0.5], 10) == 0.5


def test_the_break_even_batch_is_the_fewest_images_that_hide_all_but_the_last_bucket() -> None:
    # Backward: the second layer first. 1 MiB each fills a bucket only in the first place; both
    # layers have as many operations, 4 · 10 per image at 100 per second: 0.4 s.
    layers = [Layer(2**18, 10), Layer(2**18, 10)]
    # Two nodes of a GPU: a ring sends 1 MiB in 2 s, in each of both buckets.
    cluster = Cluster(2, 2**19, 1, network_delay_s=0.0)
    step = model_step(layers, 4, cluster, flops_per_s=100.0)
    assert step.compute == pytest.approx(6 * 20 * 4 / 100)
    assert step.communication == pytest.approx(4)
    # Ready after 1.6 and 3.2 s: sent until 3.6 and 5.6 s, and backward ends at 3.2 s.
    assert step.exposed == pytest.approx(2.4)
    assert not step.hidden
    # Hidden once the second half of backward, 0.4 s an image, lasts 2 s.
    assert break_even_batch(layers, cluster, flops_per_s=100.0) == 5
    assert break_even_batch(layers, cluster, flops_per_s=100.0, value_bytes=2) == 3


def test_a_network_that_is_too_slow_never_breaks_even() -> None:
    layers = [Layer(2**18, 1), Layer(2**18, 1)]
    cluster = Cluster(2, 1.0, 1)
    assert break_even_batch(layers, cluster, flops_per_s=1e12) is None


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "resnet20_cifar"])
def test_layers_have_all_parameters_and_operations_of_the_net(name: str) -> None:
    net = create_model(name)
    layers = layers_of(create_on_meta(name), 64)
    assert sum(layer.num_parameters for layer in layers) == sum(p.numel() for p in net.parameters())
    assert sum(layer.macs for layer in layers) == count_macs(net, 64)


def test_a_resnet_s_buckets_begin_with_its_last_layer() -> None:
    layers = layers_of(create_on_meta("resnet50"), 64)
    sizes = [4.0 * layer.num_parameters for layer in reversed(layers)]
    # The classifier's 2,049,000 values are more than 1 MiB: a bucket of its own.
    assert sizes[0] == 4 * 2_049_000
    assert fill_buckets(sizes)[0] == [0]
