"""Mixup and cutmix by their formulas, and the draws behind them."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from resscale.data.permutation import uniforms
from resscale.errors import UserInputError
from resscale.training.mixing import (
    Box,
    Mix,
    MixingConfig,
    cut_box,
    draw_mix,
    mix,
    symmetric_beta,
)

BOTH = MixingConfig(mixup_alpha=0.2, cutmix_alpha=1.0)
LABEL = torch.tensor([10, 11, 12, 13])


def images() -> torch.Tensor:
    """Four float images (4, 2, 3, 5) of their own values each."""
    made = torch.arange(4 * 2 * 3 * 5, dtype=torch.float32).view(4, 2, 3, 5)
    return made.to(memory_format=torch.channels_last)


def many(
    config: MixingConfig, count: int = 4000, rows: int = 8, size: int = 224
) -> list[Mix | None]:
    return [draw_mix(config, first, 3, rows, size, size) for first in range(count)]


def test_mixup_is_zhangs_convex_combination() -> None:
    mixed = images()
    targets = mix(mixed, LABEL, Mix(share=0.75, offset=1, box=None))
    rolled = images()[[3, 0, 1, 2]]  # row i with row i - 1
    torch.testing.assert_close(mixed, 0.75 * images() + 0.25 * rolled)
    assert targets.other is not None
    assert targets.other.tolist() == [13, 10, 11, 12]
    assert targets.label is LABEL
    assert targets.share == 0.75
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_cutmix_takes_the_box_of_the_other_image_and_nothing_else() -> None:
    mixed = images()
    targets = mix(mixed, LABEL, Mix(share=0.6, offset=3, box=Box(0, 2, 2, 5)))
    rolled = images()[[1, 2, 3, 0]]  # row i with row i - 3
    inside = torch.zeros(3, 5, dtype=torch.bool)
    inside[0:2, 2:5] = True
    assert torch.equal(mixed, torch.where(inside, rolled, images()))
    assert targets.other is not None
    assert targets.other.tolist() == [11, 12, 13, 10]


def test_an_empty_box_changes_nothing() -> None:
    mixed = images()
    mix(mixed, LABEL, Mix(share=1.0, offset=1, box=Box(2, 2, 0, 4)))
    assert torch.equal(mixed, images())


@pytest.mark.parametrize(
    ("share", "centre", "box"),
    [
        # sqrt(1 - 0.75) = 1/2 of 100 × 200 pixels: 50 × 100, about the centre.
        (0.75, (50, 100), Box(25, 75, 50, 150)),
        (0.75, (10, 195), Box(0, 35, 145, 200)),  # cut off above and to the right
        (0.0, (50, 100), Box(0, 100, 0, 200)),
        (1.0, (50, 100), Box(50, 50, 100, 100)),
        (1 - 1 / 64, (0, 0), Box(0, 6, 0, 12)),  # 1/8 of each side: 12 × 25, halves 6 and 12
    ],
)
def test_the_box_has_the_area_of_the_other_share(
    share: float, centre: tuple[int, int], box: Box
) -> None:
    assert cut_box(share, *centre, 100, 200) == box


def shares(alpha: float, count: int = 4000) -> np.ndarray:
    pairs = uniforms(np.arange(count), 2, 7).tolist()
    return np.array([symmetric_beta(alpha, first, second) for first, second in pairs])


# Beta(a, a) has a closed distribution function for these.
@pytest.mark.parametrize(
    ("alpha", "cdf"),
    [
        (0.5, lambda x: 2 / np.pi * np.arcsin(np.sqrt(x))),
        (1.0, lambda x: x),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
    ],
)
def test_shares_are_beta_distributed(alpha: float, cdf: Any) -> None:
    ordered = cdf(np.sort(shares(alpha)))
    # Of 4,000 draws the largest gap to the true distribution is above 0.031 once in a thousand.
    assert np.abs(ordered - (np.arange(4000) + 0.5) / 4000).max() < 0.031


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 3.0])
def test_shares_have_the_moments_of_the_beta(alpha: float) -> None:
    drawn = shares(alpha, 20_000)
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    # Var = 1 / (4 (2a + 1)); the fourth about the mean is 3 / (16 (2a + 1) (2a + 3)).
    second, fourth = 1 / (4 * (2 * alpha + 1)), 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))
    assert drawn.mean() == pytest.approx(0.5, abs=5 * (second / 20_000) ** 0.5)
    assert ((drawn - 0.5) ** 2).mean() == pytest.approx(second, rel=0.02)
    assert ((drawn - 0.5) ** 4).mean() == pytest.approx(fourth, rel=0.04)


def test_the_ends_of_the_uniforms_give_shares_too() -> None:
    for alpha in (1e-6, 0.2, 50.0):
        for first in (0.0, 1 - 2**-53):
            for second in (0.0, 0.25, 0.5, 1 - 2**-53):
                assert 0 <= symmetric_beta(alpha, first, second) <= 1


def test_the_share_of_cutmix_is_what_the_box_leaves() -> None:
    for drawn in many(MixingConfig(cutmix_alpha=1.0), count=300):
        assert drawn is not None
        assert drawn.box is not None
        top, bottom, left, right = drawn.box
        assert 0 <= top <= bottom <= 224
        assert 0 <= left <= right <= 224
        assert drawn.share == pytest.approx(1 - (bottom - top) * (right - left) / 224**2)


def test_micro_batches_switch_between_mixup_and_cutmix() -> None:
    config = MixingConfig(0.2, 1.0, switch_probability=0.3, probability=0.8)
    kinds = Counter(
        "none" if drawn is None else "mixup" if drawn.box is None else "cutmix"
        for drawn in many(config)
    )
    # 4,000 × (0.2, 0.8 × 0.7, 0.8 × 0.3), within 5 standard deviations of at most 31.6.
    assert kinds["none"] == pytest.approx(800, abs=127)
    assert kinds["mixup"] == pytest.approx(2240, abs=158)
    assert kinds["cutmix"] == pytest.approx(960, abs=136)


@pytest.mark.parametrize(
    ("config", "cut"),
    [(MixingConfig(mixup_alpha=0.2), False), (MixingConfig(cutmix_alpha=1.0), True)],
)
def test_with_one_alpha_there_is_nothing_to_switch(config: MixingConfig, cut: bool) -> None:
    assert all(drawn is not None and (drawn.box is not None) == cut for drawn in many(config, 200))


def test_rows_are_paired_with_any_other_row() -> None:
    offsets = Counter(drawn.offset for drawn in many(BOTH, rows=5) if drawn)
    assert set(offsets) == {1, 2, 3, 4}
    assert all(abs(count - 1000) < 5 * 28 for count in offsets.values())


def test_a_draw_is_a_function_of_first_id_and_key() -> None:
    assert many(BOTH, 50) == many(BOTH, 50)
    assert draw_mix(BOTH, 7, 3, 8, 224, 224) != draw_mix(BOTH, 8, 3, 8, 224, 224)
    assert draw_mix(BOTH, 7, 3, 8, 224, 224) != draw_mix(BOTH, 7, 4, 8, 224, 224)


def test_draws_are_those_of_any_version() -> None:
    # 130 of 224 pixels each way: 1 - 130²/224²
    box = Box(top=12, bottom=142, left=22, right=152)
    assert draw_mix(BOTH, 1, 3, 8, 224, 224) == Mix(1 - 130**2 / 224**2, 5, box)
    mixup = draw_mix(BOTH, 0, 3, 8, 224, 224)
    assert mixup is not None
    assert mixup == Mix(pytest.approx(0.9971744501806417), 7, None)


def test_nothing_is_mixed_where_nothing_can_or_shall_be() -> None:
    assert draw_mix(BOTH, 0, 0, 1, 224, 224) is None  # a single image
    assert not MixingConfig().is_on
    assert not MixingConfig(mixup_alpha=1.0, probability=0.0).is_on
    assert many(MixingConfig(), 10) == [None] * 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup_alpha": -1.0}, "model.mixing.mixup_alpha=-1.0 must not be below 0"),
        ({"cutmix_alpha": float("nan")}, "model.mixing.cutmix_alpha=nan must not be below 0"),
        ({"probability": 1.5}, "model.mixing.probability=1.5 must be from 0 to 1"),
        ({"switch_probability": -0.1}, "model.mixing.switch_probability=-0.1 must be from 0"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        MixingConfig(**arguments)
