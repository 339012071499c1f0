"""Policies by name: what is refused, and what is drawn for whom."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from resscale.errors import UserInputError
from resscale.training.apply_policy import OPERATIONS, Layer
from resscale.training.policies import IncreasingRand, PolicyConfig, draw_policy, parse_rand
from resscale.training.policy_spaces import INCREASING

TRIVIAL = PolicyConfig("trivial_augment_wide")
RAND = PolicyConfig("rand_augment", num_ops=2, magnitude=9)
TIMM = PolicyConfig("rand-m7-mstd0.5-inc1")
MANY = np.arange(30_000)


def draw(config: PolicyConfig, ids: Any = MANY, key: int = 5, size: int = 224) -> list[Layer]:
    return draw_policy(config, np.asarray(ids), key, size, size)


def values_of(layer: Layer, operation: str) -> np.ndarray:
    return layer.values[layer.operations == OPERATIONS.index(operation)]


@pytest.mark.parametrize("config", [TRIVIAL, RAND, TIMM], ids=lambda config: config.name)
def test_a_row_s_draws_are_a_function_of_its_id_and_the_key(config: PolicyConfig) -> None:
    ids = np.array([3, 900, 17, 4, 3])
    for whole, alone in zip(draw(config, ids), draw(config, ids[2:3]), strict=True):
        assert whole.operations[2] == alone.operations[0]
        assert whole.values[2] == alone.values[0]
        assert whole.values[0] == whole.values[4]
    other = draw(config, MANY, key=6)[0]
    assert (draw(config)[0].operations != other.operations).any()


# A run that goes on under a later version must draw what it would have drawn.
@pytest.mark.parametrize(
    ("config", "pinned"),
    [
        (TRIVIAL, [("rotate", -22.5), ("contrast", 1.099), ("color", 1.924)]),
        (RAND, [("contrast", 1.27), ("posterize", 7.0), ("shear_x", 0.09)]),
        (TIMM, [("contrast", 1.6829), ("shear_x", -0.1972), ("identity", 0.0)]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_draws_are_those_of_any_version(
    config: PolicyConfig, pinned: list[tuple[str, float]]
) -> None:
    last = draw(config, [1, 2, 5])[-1]
    names = [OPERATIONS[number] for number in last.operations]
    assert list(zip(names, last.values.round(4).tolist(), strict=True)) == pinned


def test_trivial_augment_takes_one_operation_each_as_likely() -> None:
    (layer,) = draw(TRIVIAL)
    counts = Counter(layer.operations.tolist())
    assert len(counts) == 14
    # 30,000 / 14 = 2,143 within 5 standard deviations of sqrt(2143 × 13/14) = 45
    assert all(abs(count - 30_000 / 14) < 5 * 45 for count in counts.values())


def test_trivial_augment_takes_each_magnitude_and_either_sign() -> None:
    (layer,) = draw(TRIVIAL)
    turns = values_of(layer, "rotate")
    assert len(np.unique(turns)) == 2 * 30 + 1
    assert turns.min() == -135
    assert turns.max() == 135
    # 2,143 with 1/31 of them 0: the others have either sign, within 5 deviations of sqrt(N)/2.
    assert abs((turns > 0).sum() - (turns < 0).sum()) < 5 * len(turns) ** 0.5
    assert len(np.unique(values_of(layer, "posterize"))) == 7  # 8 to 2 bits


def test_rand_augment_takes_the_named_magnitude_of_two_operations() -> None:
    first, second = draw(RAND)
    assert (first.operations != second.operations).any()
    for layer in (first, second):
        assert sorted({round(v, 5) for v in values_of(layer, "rotate")}) == [-9, 9]  # 9/30 × 30°
        assert {round(v, 5) for v in values_of(layer, "color")} == {0.73, 1.27}  # 1 ± 9/30 × 0.9
        # 9/30 of 150/331 × 224 = 101.51 is 30.45: 30 whole pixels.
        assert set(values_of(layer, "translate_x")) == {-30, 30}


def test_the_rand_augment_of_timm_acts_on_half_of_the_layers() -> None:
    first, second = draw(TIMM)
    for layer in (first, second):
        idle = (layer.operations == OPERATIONS.index("identity")).mean()
        assert idle == pytest.approx(0.5, abs=5 * 0.5 / 30_000**0.5)
        acting = Counter(layer.operations.tolist())
        del acting[OPERATIONS.index("identity")]
        assert {OPERATIONS[number] for number in acting} == set(INCREASING)
        assert all(abs(count - 1000) < 5 * 32 for count in acting.values())  # 15,000 / 15
    both = first.operations != OPERATIONS.index("identity")
    assert (both & (second.operations != OPERATIONS.index("identity"))).mean() == pytest.approx(
        0.25, abs=0.02
    )


def test_the_levels_of_timm_are_normal_about_the_mean() -> None:
    levels = np.abs(values_of(draw(TIMM)[0], "rotate")) / 3  # 30° at level 10
    # 1,000 draws: the mean within 5 × 0.5/sqrt(1000), the deviation within 10%.
    assert levels.mean() == pytest.approx(7, abs=0.08)
    assert levels.std() == pytest.approx(0.5, rel=0.1)
    assert np.abs(values_of(draw(PolicyConfig("rand-m7-inc1"))[0], "rotate")).std() < 1e-9


def test_levels_stay_between_0_and_10() -> None:
    turns = np.abs(values_of(draw(PolicyConfig("rand-m9-mstd3-inc1"))[0], "rotate"))
    assert turns.max() == pytest.approx(30)  # level 10
    assert (turns == turns.max()).mean() == pytest.approx(0.37, abs=0.1)  # above (10 - 9)/3 σ


def test_a_shift_of_timm_is_relative_to_its_side() -> None:
    layers = draw_policy(PolicyConfig("rand-m10-inc1"), MANY, 5, 100, 200)
    assert set(np.abs(values_of(layers[0], "translate_x")).round(6)) == {90.0}  # 0.45 × 200
    assert set(np.abs(values_of(layers[0], "translate_y")).round(6)) == {45.0}


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("rand-m7-mstd0.5-inc1", IncreasingRand(7.0, 0.5, 2, 0.5)),
        ("rand-m6-n3-p0.8-inc1", IncreasingRand(6.0, 0.0, 3, 0.8)),
        ("rand-inc1", IncreasingRand(10.0, 0.0, 2, 0.5)),
    ],
)
def test_timms_names_are_read(name: str, meaning: IncreasingRand) -> None:
    assert parse_rand(name) == meaning


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "rand_augmnt"}, r"name=rand_augmnt must be one of.*Did you mean 'rand_augment'"),
        ({"name": "rand-m7-mstd0.5"}, "needs inc1: of timm's two sets"),
        ({"name": "rand-m7-inc0"}, "needs inc1"),
        ({"name": "rand-m7-w0-inc1"}, "section 'w0' must be one of m, mstd, n, p and inc"),
        ({"name": "rand-m7-m8-inc1"}, "each once"),
        ({"name": "rand-m11-inc1"}, "m must be from 0 to 10"),
        ({"name": "rand-m7-n0-inc1"}, "n a whole number from 1 to 10"),
        ({"name": "rand-m7-p1.5-inc1"}, "p from 0 to 1"),
        ({"num_ops": 0}, "num_ops=0 must be from 1 to 10"),
        ({"magnitude": 31}, "magnitude=31 must be from 0 to 30"),
        ({"num_magnitudes": 1}, "num_magnitudes=1 must be at least 2"),
        ({"interpolation": "bilinaer"}, "Did you mean 'bilinear'"),
        ({"fill": (0, 256, 0)}, r"fill=\[0, 256, 0\] must be levels from 0 to 255"),
        ({"fill": ()}, "one for each channel"),
        ({"magnitude": 3}, "magnitude=3 is for rand_augment, and model.policy.name is not set"),
        ({"name": "rand-m7-inc1", "num_ops": 5}, "num_ops=5 is for rand_augment, and"),
        ({"name": "trivial_augment_wide", "magnitude": 3}, "which would ignore it: leave"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        PolicyConfig(**arguments)


def test_channels_that_pillow_has_no_operations_for_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"of 1 or 3 channels, and data\.channels=4"):
        TRIVIAL.check_channels(4)
    with pytest.raises(UserInputError, match="has 3 levels for images of 1 channels"):
        PolicyConfig("trivial_augment_wide", fill=(1, 2, 3)).check_channels(1)
    PolicyConfig().check_channels(4)  # off
    PolicyConfig("trivial_augment_wide", fill=(1, 2, 3)).check_channels(3)
