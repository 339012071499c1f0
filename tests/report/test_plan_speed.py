"""`resscale.report.plan_speed`: rates of nets and GPUs from published ones."""

from functools import partial

import pytest
import torch

from resscale.models import count_macs, create_model
from resscale.models.meta import create_on_meta
from resscale.report.plan_activations import saved_for_backward
from resscale.report.plan_gpus import GPUS
from resscale.report.plan_speed import (
    BYTES,
    FACTORS,
    OPERATIONS,
    REFERENCE,
    ImageCost,
    tabulated_rate,
)


def test_the_reference_is_resnet_50_at_224_pixels() -> None:
    saved = saved_for_backward(partial(create_model, "resnet50"), 224, dtype=torch.bfloat16)
    assert ImageCost(count_macs(create_on_meta("resnet50"), 224), saved.per_image) == REFERENCE
    assert FACTORS["resnet50"] == 1


def test_an_image_costs_operations_and_bytes() -> None:
    gpu = GPUS["rtx3090"]  # 71e12 operations and 936e9 bytes per second
    seconds = ImageCost(10**9, 10**6).seconds_on(gpu)
    assert seconds == pytest.approx(OPERATIONS * 6e9 / 71e12 + BYTES * 1e6 / 936e9)


def test_resnet_50_has_the_published_rate() -> None:
    rate = tabulated_rate("resnet50", REFERENCE, GPUS["h100"], is_fp32=False)
    assert rate.images_per_s == pytest.approx(2791)
    assert not rate.is_measured
    assert "2,791 published for resnet50 at 224 on h100" in rate.source
    fp32 = tabulated_rate("resnet50", REFERENCE, GPUS["h100"], is_fp32=True)
    assert fp32.images_per_s == pytest.approx(1893)
    assert "TF32" in fp32.source


def test_another_net_is_slower_by_its_operations_and_bytes() -> None:
    double = ImageCost(2 * REFERENCE.macs, 2 * REFERENCE.saved_bytes)
    unknown = tabulated_rate("some_net", double, GPUS["a100"], is_fp32=False)
    assert unknown.images_per_s == pytest.approx(1582 / 2)
    assert "none is published for this net" in unknown.source
    known = tabulated_rate("resnet152", double, GPUS["a100"], is_fp32=False)
    assert known.images_per_s == pytest.approx(1582 / 2 * FACTORS["resnet152"])


def test_timms_rate_of_resnet_152_is_carried_over() -> None:
    saved = saved_for_backward(partial(create_model, "resnet152"), 224, dtype=torch.bfloat16)
    cost = ImageCost(count_macs(create_on_meta("resnet152"), 224), saved.per_image)
    rate = tabulated_rate("resnet152", cost, GPUS["rtx3090"], is_fp32=False)
    # On an RTX 3090 timm published 501.44 and, for resnet50, 1,218.01; Lambda 905 for resnet50.
    assert rate.images_per_s / 905 == pytest.approx(501.44 / 1218.01, rel=1e-3)


def test_a_gpu_without_a_rate_is_scaled_from_one_that_has_it() -> None:
    h100, h200 = GPUS["h100"], GPUS["h200"]
    rate = tabulated_rate("resnet50", REFERENCE, h200, is_fp32=False)
    ratio = REFERENCE.seconds_on(h100) / REFERENCE.seconds_on(h200)
    assert rate.images_per_s == pytest.approx(2791 * ratio)
    assert 1 < ratio < 4800 / 3350  # bound by memory, but not only
    assert "none for h200, scaled by peak and memory bandwidth" in rate.source
