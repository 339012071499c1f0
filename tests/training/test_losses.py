"""The losses by their formulas, over hard, smoothed, mixed and missing labels."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from resscale.errors import UserInputError
from resscale.training.losses import LossConfig, Targets, soft_targets, training_loss

LABEL = torch.tensor([0, 2, 3, 3])
OTHER = torch.tensor([1, 2, 0, 1])


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_mixing_cross_entropy_is_torchs_to_the_bit(
    logits: Tensor, smoothing: float
) -> None:
    expected = functional.cross_entropy(logits, LABEL, label_smoothing=smoothing)
    config = LossConfig(label_smoothing=smoothing)
    assert training_loss(logits, Targets(LABEL), config).item() == expected.item()


def test_label_smoothing_is_that_of_szegedy(logits: Tensor) -> None:
    # q' = (1 - e) q + e / K (section 7), and the loss is -sum q' log p.
    e, classes = 0.1, 5
    shares = functional.one_hot(LABEL, classes) * (1 - e) + e / classes
    expected = -(shares * logits.log_softmax(1)).sum(1).mean()
    loss = training_loss(logits, Targets(LABEL), LossConfig(label_smoothing=e))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_mixed_cross_entropy_is_the_shares_of_both_labels(
    logits: Tensor, share: float, smoothing: float
) -> None:
    first, second = (
        functional.cross_entropy(logits, label, label_smoothing=smoothing)
        for label in (LABEL, OTHER)
    )
    loss = training_loss(
        logits, Targets(LABEL, OTHER, share), LossConfig(label_smoothing=smoothing)
    )
    torch.testing.assert_close(loss, share * first + (1 - share) * second, rtol=1e-6, atol=0)


def test_binary_cross_entropy_is_the_mean_over_rows_and_classes() -> None:
    logits = torch.tensor([[0.0, 2.0], [-1.0, 0.5]], dtype=torch.float64)

    def softplus(x: float) -> float:
        return math.log1p(math.exp(x))

    # -log sigmoid(x) = softplus(-x) where the target is 1, softplus(x) where it is 0.
    expected = (softplus(-0.0) + softplus(2.0) + softplus(-1.0) + softplus(-0.5)) / 4
    loss = training_loss(logits, Targets(torch.tensor([0, 1])), LossConfig("bce"))
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_the_targets_of_bce_are_smoothed_shares() -> None:
    config = LossConfig("bce", label_smoothing=0.1)
    dense = soft_targets(Targets(LABEL, OTHER, 0.3), 5, config)
    # 0.9 × share + 0.1 / 5; the second row was mixed with an image of its own class.
    expected = [
        [0.29, 0.65, 0.02, 0.02, 0.02],
        [0.02, 0.02, 0.92, 0.02, 0.02],
        [0.65, 0.02, 0.02, 0.29, 0.02],
        [0.02, 0.65, 0.02, 0.29, 0.02],
    ]
    torch.testing.assert_close(dense, torch.tensor(expected))


def test_above_the_threshold_a_target_is_1_and_below_it_0() -> None:
    config = LossConfig("bce", target_threshold=0.2)
    dense = soft_targets(Targets(LABEL, OTHER, 0.3), 5, config)
    assert dense[0].tolist() == [1, 1, 0, 0, 0]
    dense = soft_targets(Targets(LABEL, OTHER, 0.1), 5, config)
    assert dense[0].tolist() == [0, 1, 0, 0, 0]
    # A share of exactly the threshold is not above it.
    assert soft_targets(Targets(LABEL, OTHER, 0.2), 5, config)[0].tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
@pytest.mark.parametrize("other", [None, OTHER])
def test_rows_without_a_label_do_not_count(logits: Tensor, name: Any, other: Tensor | None) -> None:
    config = LossConfig(name, label_smoothing=0.1)
    whole = training_loss(logits[:3], Targets(LABEL[:3]), config)
    missing = torch.tensor([0, 2, 3, -1])
    unknown = None if other is None else torch.tensor([0, 2, 3, -1])
    loss = training_loss(logits, Targets(missing, unknown, 0.6), config)
    torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_of_a_row_with_one_label_of_two_only_that_share_counts(logits: Tensor, name: Any) -> None:
    config = LossConfig(name)
    both = Targets(torch.tensor([0, 2]), torch.tensor([1, -1]), 0.75)
    rows = [training_loss(logits[:1], Targets(both.label[:1], both.other[:1], 0.75), config)]  # type: ignore[index]
    rows.append(training_loss(logits[1:2], Targets(both.label[1:]), config))
    expected = (rows[0] * 1.0 + rows[1] * 0.75) / 1.75
    torch.testing.assert_close(training_loss(logits[:2], both, config), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["cross_entropy", "bce"])
def test_logits_in_bfloat16_lose_in_float32(logits: Tensor, name: Any) -> None:
    rounded = logits.to(torch.bfloat16)
    targets = Targets(LABEL, OTHER, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        loss = training_loss(rounded, targets, LossConfig(name))
    assert loss.dtype == torch.float32
    expected = training_loss(rounded.double(), targets, LossConfig(name))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_label_of_the_larger_share_is_what_top1_counts() -> None:
    assert Targets(LABEL).larger is LABEL
    assert Targets(LABEL, OTHER, 0.5).larger is LABEL
    assert Targets(LABEL, OTHER, 0.49).larger is OTHER


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "bec"}, "model.loss=bec must be one of cross_entropy, bce. Did you mean 'bce'"),
        ({"label_smoothing": 1.0}, "model.label_smoothing=1.0 must be from 0 up to 1"),
        ({"name": "bce", "target_threshold": 1.0}, "model.target_threshold=1.0 must be from 0"),
        ({"target_threshold": 0.2}, "is for the loss 'bce', and model.loss is 'cross_entropy'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        LossConfig(**arguments)


@pytest.mark.parametrize(
    ("threshold", "is_fine"),
    # Of 10 classes, smoothed by 0.1: 0.1/10 = 0.01 for the others, 1 - 0.1 + 0.01 for its own.
    [(0.0, False), (0.01, True), (0.2, True), (0.9, True), (0.91, False), (0.95, False)],
)
def test_a_threshold_that_makes_all_targets_equal_is_refused(
    threshold: float, is_fine: bool
) -> None:
    config = LossConfig("bce", 0.1, threshold)
    if is_fine:
        config.check_classes(10)
        return
    with pytest.raises(UserInputError, match=r"they are 0\.01 or 0\.91; choose one between"):
        config.check_classes(10)
