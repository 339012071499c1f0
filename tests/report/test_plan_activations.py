"""`resscale.report.plan_activations`: bytes of a step, computed, and against real tensors."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from resscale.models import create_model
from resscale.report.plan_activations import (
    LiveBytes,
    autocast,
    saved_for_backward,
    simulate_step,
    step_memory,
)

BUILD = partial(create_model, "plain8_cifar")


def test_each_map_that_backward_needs_is_counted_once() -> None:
    # Of an 8x8 image with 3 channels: the image, and per convolution its output (BN keeps it) and
    # the ReLU's: 3 of 16 channels on 64 pixels, 2 of 32 on 16, 2 of 64 on 4; the pooled 64, and
    # 1000 log-probabilities. Values of 4 bytes, and a label of 8.
    values = 3 * 64 + 2 * (3 * 16 * 64 + 2 * 32 * 16 + 2 * 64 * 4) + 64 + 1000
    saved = saved_for_backward(BUILD, 8, dtype=None)
    assert saved.per_image == 4 * values + 8


def test_under_autocast_maps_are_halved_and_weights_have_copies() -> None:
    fp32 = saved_for_backward(BUILD, 8, dtype=None)
    bf16 = saved_for_backward(BUILD, 8, dtype=torch.bfloat16)
    # The loss is computed in float32: its 1000 log-probabilities and the label stay.
    assert bf16.per_image - 4008 == pytest.approx((fp32.per_image - 4008) / 2, rel=0.01)
    # 7 convolutions of 3·16, 2 × 16·16, 16·32, 32·32, 32·64, 64·64, each of 9 taps, and the last
    # layer's 64·1000, in 2 bytes; its bias is not needed for backward.
    weights = 9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 64_000
    assert bf16.fixed == pytest.approx(2 * weights, rel=0.01)
    assert fp32.fixed < 0.01 * bf16.fixed


def test_a_tensor_counts_from_its_birth_to_its_end() -> None:
    with LiveBytes() as memory:
        first = torch.zeros(100)
        view = first[:50]
        second = first + 1
        assert memory.live == 800  # a view has no bytes of its own
        del first
        assert memory.live == 800  # which the view still holds
        del view, second
        assert memory.live == 0
    assert memory.peak == 800


def train_twice(build: Callable[[], nn.Module], images: int, size: int, bf16: bool) -> None:
    """Two steps of real tensors, in Lightning's order; nothing is left behind."""
    net = build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, foreach=False)
    for name in ("first", "second"):
        with torch.profiler.record_function(name):
            pixels = torch.zeros(images, 3, size, size, dtype=torch.uint8)
            values = torch.addcmul(torch.zeros(3, 1, 1), pixels.float(), torch.ones(3, 1, 1))
            with autocast(torch.bfloat16 if bf16 else None):
                loss = functional.cross_entropy(net(values), torch.zeros(images, dtype=torch.long))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()


def allocated_peak(
    build: Callable[[], nn.Module], images: int, size: int, bf16: bool, folder: Path
) -> int:
    """The most that torch's own allocator gave out in the second step."""
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        train_twice(build, images, size, bf16)
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    begins = next(event["ts"] for event in events if event.get("name") == "second")
    totals = [event for event in events if event.get("name") == "[memory]"]
    # The allocator goes on counting from what others have left.
    first = min(totals, key=lambda event: event["ts"])["args"]
    before = first["Total Allocated"] - first["Bytes"]
    return max(e["args"]["Total Allocated"] for e in totals if e["ts"] >= begins) - before


@pytest.mark.parametrize(
    ("name", "options", "bf16"),
    [
        ("resnet20_cifar", {}, False),
        ("resnetv2_20_cifar", {}, True),
        ("resnet29_bottleneck_cifar", {"se": 16, "drop_path": 0.1}, True),
    ],
)
def test_the_computed_peak_is_the_allocator_s(
    name: str, options: dict[str, object], bf16: bool, tmp_path: Path
) -> None:
    build = partial(create_model, name, 10, **options)
    dtype = torch.bfloat16 if bf16 else None
    computed = simulate_step(build, 64, 16, dtype=dtype, update_copies=0)
    # Kernels have scratch memory of their own, which fake operations have not.
    measured = allocated_peak(build, 64, 16, bf16, tmp_path)
    assert computed.peak == pytest.approx(measured, rel=0.03)


def test_states_are_weights_buffers_gradients_and_momentum() -> None:
    net = BUILD()
    weights = 4 * sum(p.numel() for p in net.parameters())
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    step = simulate_step(BUILD, 2, 8, dtype=None, state_values=2)
    assert step.states == 4 * weights + buffers  # of which two are Adam's
    assert step.peak >= step.states + max(step.saved, weights)
    # So few images: the update's copy of the gradients makes the peak.
    assert step.peak == step.states + weights


def test_gradients_that_stay_are_never_given_up() -> None:
    # So few images that backward is the peak: with gradients of the step before and of this one.
    freed, kept = (
        simulate_step(BUILD, 1, 8, dtype=None, update_copies=0, gradients_stay=stay).peak
        for stay in (False, True)
    )
    assert kept > freed


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_line_over_images_meets_a_step_of_another_size(dtype: torch.dtype | None) -> None:
    memory = step_memory(BUILD, 16, dtype=dtype)
    step = simulate_step(BUILD, 200, 16, dtype=dtype, state_values=0)
    assert memory.saved_bytes(200) == step.saved
    computed = memory.saved_bytes(200) + memory.work_bytes(200)
    assert computed == pytest.approx(step.peak - step.states, rel=0.02)


def test_no_value_is_ever_allocated() -> None:
    # 4,096 images of 224 pixels would keep 170 GiB.
    step = simulate_step(partial(create_model, "resnet18"), 4096, 224, dtype=torch.bfloat16)
    assert step.saved > 40 * 2**30
