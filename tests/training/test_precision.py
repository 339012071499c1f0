"""Precision by name, autocast with float32 weights, and the scaler that counts."""

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision, Precision

from resscale.errors import UserInputError
from resscale.training.precision import (
    PRECISIONS,
    CountingGradScaler,
    ZeroPrecision,
    autocast_dtype,
    build_precision,
    precision_name,
)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *((name, name) for name in PRECISIONS),
        (32, "32-true"),
        ("32", "32-true"),
        (16, "16-mixed"),
        ("16", "16-mixed"),
        ("bf16", "bf16-mixed"),
        (None, "32-true"),
    ],
)
def test_a_precision_has_the_names_that_lightning_knows(value: str | int | None, name: str) -> None:
    assert precision_name(value) == name


@pytest.mark.parametrize("value", ["16-true", "bf16-true"])
def test_half_weights_are_refused_for_batchnorm(value: str) -> None:
    with pytest.raises(UserInputError, match=f"precision={value} .*it would cast BatchNorm too"):
        precision_name(value)


@pytest.mark.parametrize(
    ("value", "hint"),
    [("bf16-mix", " Did you mean 'bf16-mixed'?"), ("64-true", ""), ("fp16_mixed", "16-mixed")],
)
def test_another_precision_is_refused_with_those_there_are(value: str, hint: str) -> None:
    with pytest.raises(UserInputError, match="one of 32-true, bf16-mixed, 16-mixed") as refused:
        precision_name(value)
    assert hint in str(refused.value).partition("choose")[2]
    assert "BatchNorm" not in str(refused.value)


def test_float16_alone_has_a_scaler_and_it_counts() -> None:
    plain, bf16, fp16 = (build_precision(name, "cpu", deepspeed=False) for name in PRECISIONS)
    assert type(plain) is Precision
    assert isinstance(bf16, MixedPrecision)
    assert isinstance(fp16, MixedPrecision)
    assert bf16.scaler is None
    assert isinstance(fp16.scaler, CountingGradScaler)
    assert (bf16.device, fp16.device, fp16.scaler._device) == ("cpu", "cpu", "cpu")


@pytest.mark.parametrize("deepspeed", [False, True])
def test_autocast_is_for_the_device_of_the_run(deepspeed: bool) -> None:
    assert build_precision("bf16-mixed", "cuda", deepspeed=deepspeed).device == "cuda"


@pytest.mark.parametrize("name", PRECISIONS)
def test_deepspeed_gets_autocast_and_no_cast(name: str) -> None:
    plugin = build_precision(name, "cpu", deepspeed=True)
    assert isinstance(plugin, ZeroPrecision)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    images = torch.randn(2, 1, 4, 4)
    assert plugin.convert_module(network) is network
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}
    assert plugin.convert_input(images) is images
    with plugin.forward_context():
        assert network[0](images).dtype == (autocast_dtype(name) or torch.float32)
        assert network(images).isfinite().all()
    assert network[0](images).dtype == torch.float32


def test_lightnings_autocast_leaves_float16_what_it_is_on_a_cpu() -> None:
    with build_precision("16-mixed", "cpu", deepspeed=False).forward_context():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.float16


def test_a_step_with_an_overflow_is_skipped_and_counted() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scaler = CountingGradScaler("cpu", init_scale=8.0)
    skipped = []
    for factor in (1.0, float("inf"), float("nan"), 1.0):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        skipped.append(scaler.skipped_steps)
    assert skipped == [0, 1, 2, 2]
    # Two steps of 0.5 by a gradient of 1: 1 - 2 · 0.5, 2 - 2 · 0.5.
    assert weight.tolist() == [0.0, 1.0]
    assert scaler.get_scale() == 8.0 / 2 / 2
    assert CountingGradScaler("cpu").skipped_steps == 0
