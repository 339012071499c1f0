"""Crops by name, and the evaluation crop that follows from the training crop."""

import pytest

from resscale.data.augment import CenterCrop, Crop, PadCrop, RandomResizedCrop
from resscale.data.crops import TrainCrop, build_eval_crop, build_train_crop
from resscale.errors import UserInputError


@pytest.mark.parametrize(
    ("kind", "crop"),
    [
        ("random_resized", RandomResizedCrop(32, (0.25, 1.0))),
        ("pad", PadCrop(32, 3)),
        ("center", CenterCrop(32, 32)),
    ],
)
def test_a_training_crop_is_what_its_name_says(kind: TrainCrop, crop: Crop) -> None:
    assert build_train_crop(kind, 32, (0.25, 1.0), 3) == crop


@pytest.mark.parametrize(
    ("kind", "resize", "found"),
    [
        ("random_resized", None, 256),  # 224 × 256 / 224
        ("pad", None, 224),
        ("center", None, 224),
        ("random_resized", 232, 232),
    ],
)
def test_the_side_before_the_evaluation_crop_follows_from_the_training_crop(
    kind: TrainCrop, resize: int | None, found: int
) -> None:
    assert build_eval_crop(kind, 224, resize) == CenterCrop(224, found)


def test_the_aspect_of_random_regions_is_the_users() -> None:
    crop = build_train_crop("random_resized", 32, (0.5, 1.0), 0, (0.9, 1.1))
    assert crop == RandomResizedCrop(32, (0.5, 1.0), (0.9, 1.1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (0.5, 0.2)}, r"data\.scale=\[0\.5, 0\.2\] must be two shares"),
        ({"scale": (0.0, 1.0)}, r"data\.scale=\[0\.0, 1\.0\] must be"),
        ({"scale": (0.5, 1.5)}, r"data\.scale=\[0\.5, 1\.5\] must be"),
        ({"ratio": (1.5, 0.5)}, r"data\.ratio=\[1\.5, 0\.5\] must be two ratios"),
        ({"ratio": (0.0, 1.0)}, r"data\.ratio=\[0\.0, 1\.0\] must be"),
        ({"pad": -1}, r"data\.pad=-1 must be 0 pixels or more"),
    ],
)
def test_ranges_that_are_none_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        build_train_crop("pad", 32, **{"scale": (0.1, 1.0), "pad": 4, **options})
