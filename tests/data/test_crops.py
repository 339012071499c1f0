"""Crops by name, and the evaluation crop that follows from the training crop."""

import pytest

from resscale.data.augment import CenterCrop, Crop, PadCrop, RandomResizedCrop
from resscale.data.crops import TrainCrop, build_eval_crop, build_train_crop


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
