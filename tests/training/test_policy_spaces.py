"""The magnitudes of the policies, against the papers' tables."""

import numpy as np
import pytest

from resscale.training.apply_policy import OPERATIONS
from resscale.training.policy_spaces import (
    INCREASING,
    Choice,
    increasing_values,
    rand_augment,
    trivial_augment_wide,
)

# Müller and Hutter 2021: 14 operations, without Invert and the like.
FOURTEEN = {
    *("identity", "auto_contrast", "equalize", "rotate", "solarize", "color", "posterize"),
    *("contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
}


def by_name(space: tuple[Choice, ...]) -> dict[str, Choice]:
    return {choice.operation: choice for choice in space}


def reach(choice: Choice) -> tuple[float, float]:
    """The parameters at the weakest and the strongest magnitude, with the plus sign."""
    ends = choice.base + choice.table[[0, -1]]
    return float(ends[0]), float(ends[1])


def test_both_spaces_have_the_papers_14_operations() -> None:
    for space in (trivial_augment_wide(31), rand_augment(31, 224, 224)):
        assert len(space) == 14
        assert set(by_name(space)) == FOURTEEN
        assert set(by_name(space)) <= set(OPERATIONS)
        assert all(len(choice.table) == 31 for choice in space)


@pytest.mark.parametrize(
    ("operation", "first", "last"),
    [
        ("shear_x", 0, 0.99),
        ("shear_y", 0, 0.99),
        ("translate_x", 0, -32),  # to the right: pixels from the left
        ("translate_y", 0, -32),
        ("rotate", 0, 135),
        ("brightness", 1, 1.99),  # and 1 - 0.99 = 0.01 with the other sign
        ("color", 1, 1.99),
        ("contrast", 1, 1.99),
        ("sharpness", 1, 1.99),
        ("posterize", 8, 2),
        ("solarize", 255, 0),
    ],
)
def test_trivial_augment_reaches_as_far_as_the_papers_wide_space(
    operation: str, first: float, last: float
) -> None:
    choice = by_name(trivial_augment_wide(31))[operation]
    assert reach(choice) == pytest.approx((first, last), abs=1e-6)
    assert choice.signed == (operation not in ("posterize", "solarize"))


@pytest.mark.parametrize(
    ("operation", "last"),
    [
        ("shear_x", 0.3),
        ("translate_x", -72),  # whole pixels of 150/331 × 160 = 72.5
        ("translate_y", -101),  # of 150/331 × 224 = 101.5
        ("rotate", 30),
        ("brightness", 1.9),
        ("sharpness", 1.9),
        ("posterize", 4),
        ("solarize", 0),
    ],
)
def test_rand_augment_reaches_as_far_as_auto_augment(operation: str, last: float) -> None:
    choice = by_name(rand_augment(31, height=224, width=160))[operation]
    assert reach(choice)[1] == pytest.approx(last, abs=1e-6)


def test_magnitudes_lie_equally_spaced() -> None:
    space = by_name(trivial_augment_wide(31))
    assert space["rotate"].table[20] == pytest.approx(20 / 30 * 135)
    assert space["translate_x"].table[20] == -21  # 20/30 × 32 = 21.3
    # 6 bits in 30 steps: 8 - round(15 / 5)
    assert space["posterize"].table[15] == 5
    assert rand_augment(31, 224, 224)[1].table[9] == pytest.approx(0.09)  # 9/30 × 0.3


# Level 7 of 10, as rand-m7: 7/10 of the range.
@pytest.mark.parametrize(
    ("operation", "sign", "value"),
    [
        ("rotate", -1, -21.0),
        ("shear_y", 1, 0.21),
        ("translate_x", 1, 0.7 * 0.45 * 160),
        ("translate_y", -1, -0.7 * 0.45 * 160),
        ("posterize", 1, 4 - 2),  # floor(0.7 × 4) = 2
        ("solarize", 1, 256 - 179),  # floor(0.7 × 256) = 179
        ("solarize_add", 1, 77),  # 0.7 × 110
        ("brightness", 1, 1.63),
        ("color", -1, 1 - 0.63),
        ("invert", 1, 0.0),
    ],
)
def test_severity_increases_with_the_level(operation: str, sign: float, value: float) -> None:
    found = increasing_values(operation, np.array([7.0]), np.array([float(sign)]), side_px=160)
    assert found.tolist() == pytest.approx([value])


@pytest.mark.parametrize("operation", INCREASING)
def test_the_ends_of_all_levels_can_be_applied(operation: str) -> None:
    values = increasing_values(operation, np.array([0.0, 10.0]), np.array([1.0, -1.0]), 224)
    assert np.isfinite(values).all()
    if operation == "posterize":
        assert values.tolist() == [4, 1]  # not 0 bits: that would be a black image
    if operation in ("color", "contrast", "brightness", "sharpness"):
        assert values.tolist() == pytest.approx([1.0, 0.1])  # 1 - 0.9
