"""Random erasing: the rectangles that are drawn, and what is left of the images."""

from typing import Any

import numpy as np
import pytest
import torch

from resscale.errors import UserInputError
from resscale.training.erasing import ErasingConfig, Erasures, draw_erasures, erase

ALWAYS = ErasingConfig(probability=1.0)
MANY = np.arange(20_000)


def draw(config: ErasingConfig, ids: Any = MANY, key: int = 5, height: int = 200) -> Erasures:
    return draw_erasures(config, np.asarray(ids), key, height, 100)


def sides(erasures: Erasures) -> tuple[np.ndarray, np.ndarray]:
    top, bottom, left, right = erasures.boxes.T
    return bottom - top, right - left


def test_so_many_rows_are_erased_as_the_probability_says() -> None:
    found = draw(ErasingConfig(probability=0.25))
    # 5,000 of 20,000 within 5 standard deviations of sqrt(20000 × 0.25 × 0.75) = 61; nearly all
    # rows have a fitting rectangle among ten.
    assert len(found.rows) == pytest.approx(5000, abs=5 * 61)
    assert (np.diff(found.rows) > 0).all()
    assert len(draw(ErasingConfig()).rows) == 0


def test_areas_are_uniform_and_aspects_log_uniform() -> None:
    # Small enough for every first attempt to fit: nothing is selected.
    config = ErasingConfig(probability=1.0, area=(0.02, 0.06), aspect=(0.5, 2.0))
    high, wide = sides(draw(config))
    areas, aspects = high * wide / 20_000, np.log2(high / wide)
    # Uniform from 0.02 to 0.06: mean 0.04, deviation 0.04/sqrt(12); rounding of sides adds a bit.
    assert areas.mean() == pytest.approx(0.04, rel=0.02)
    assert areas.std() == pytest.approx(0.04 / 12**0.5, rel=0.03)
    assert aspects.mean() == pytest.approx(0.0, abs=0.02)
    assert aspects.std() == pytest.approx(2 / 12**0.5, rel=0.03)
    assert np.abs(aspects).max() < 1.1


def test_rectangles_lie_within_the_image_and_are_smaller_than_it() -> None:
    found = draw(ALWAYS)
    high, wide = sides(found)
    top, bottom, left, right = found.boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert bottom.max() == 200
    assert right.max() == 100
    assert high.max() < 200
    assert wide.max() < 100
    assert top.min() == left.min() == 0


def test_an_image_without_a_fitting_rectangle_stays_whole() -> None:
    # 90% of 2 × 100 pixels as a square: 13 lines of 2.
    config = ErasingConfig(probability=1.0, area=(0.9, 0.9), aspect=(1.0, 1.0))
    assert len(draw(config, height=2).rows) == 0


def test_draws_are_those_of_any_version() -> None:
    found = draw_erasures(ErasingConfig(0.5), np.arange(5), 5, 224, 224)
    assert found.rows.tolist() == [1, 3, 4]
    assert found.boxes.tolist() == [[22, 114, 136, 180], [85, 145, 9, 205], [0, 119, 119, 184]]


def test_a_row_s_draws_are_a_function_of_its_id_and_the_key() -> None:
    ids = np.array([9, 4, 77])
    whole, alone = draw(ALWAYS, ids), draw(ALWAYS, ids[2:])
    assert whole.boxes[2].tolist() == alone.boxes[0].tolist()
    assert draw(ALWAYS, ids, key=6).boxes.tolist() != whole.boxes.tolist()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("value", ["zero", "noise"])
def test_the_rectangles_are_replaced_and_nothing_else(value: Any, layout: Any) -> None:
    images = torch.full((4, 3, 30, 20), 5.0).to(memory_format=layout)
    boxes = np.array([[0, 10, 5, 20], [29, 30, 0, 1]])
    result = erase(images, Erasures(np.array([1, 3]), boxes), value, noise_seed=8)
    inside = torch.zeros(4, 3, 30, 20, dtype=torch.bool)
    inside[1, :, 0:10, 5:20] = True
    inside[3, :, 29:30, 0:1] = True
    assert bool((result[~inside] == 5).all())
    assert result.is_contiguous(memory_format=layout)
    erased = result[inside]
    if value == "zero":
        assert not erased.any()
        return
    assert len(erased.unique()) == len(erased) == 3 * (150 + 1)
    # A standard normal: 453 values, mean and deviation within 5 standard errors.
    assert abs(erased.mean().item()) < 5 / 453**0.5
    assert erased.std().item() == pytest.approx(1, abs=5 / (2 * 453) ** 0.5)


def test_noise_is_named_by_its_seed() -> None:
    erasures = Erasures(np.array([0]), np.array([[0, 4, 0, 4]]))

    def noise(seed: int) -> torch.Tensor:
        torch.rand(3)  # whatever the global generator has done
        return erase(torch.zeros(1, 3, 4, 4), erasures, "noise", seed)

    assert torch.equal(noise(1), noise(1))
    assert not torch.equal(noise(1), noise(2))


def test_without_rectangles_the_images_stay() -> None:
    images = torch.ones(2, 3, 4, 4)
    nothing = Erasures(np.zeros(0, dtype=np.int64), np.zeros((0, 4), dtype=np.int64))
    assert erase(images, nothing, "noise", 1) is images
    assert bool((images == 1).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.1}, "model.erasing.probability=1.1 must be from 0 to 1"),
        ({"area": (0.4, 0.2)}, r"area=\[0.4, 0.2\] must be two shares"),
        ({"area": (0.1, 1.2)}, "must be two shares"),
        ({"aspect": (0.0, 2.0)}, "must be two ratios of height to width"),
        ({"value": "nois"}, "Did you mean 'noise'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        ErasingConfig(**arguments)
