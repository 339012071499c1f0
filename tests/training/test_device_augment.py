"""The chain on the device: what comes behind what, and what a row's draws depend on."""

from typing import Any

import pytest
import torch
from sample_photos import crops

from resscale import ImageClassifier
from resscale.data.dataset import Batch
from resscale.errors import UserInputError
from resscale.training.device_augment import DeviceAugment
from resscale.training.erasing import ErasingConfig
from resscale.training.losses import Targets
from resscale.training.mixing import MixingConfig
from resscale.training.policies import PolicyConfig

POLICY = PolicyConfig("trivial_augment_wide")
ERASING = ErasingConfig(probability=0.5)
NOISE = ErasingConfig(probability=0.5, value="noise")
MIXING = MixingConfig(mixup_alpha=1.0, cutmix_alpha=1.0)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def batch() -> Batch:
    rows = 12
    return Batch(
        image=crops(rows, 3, 40, 40),
        label=torch.arange(rows),
        flip=torch.arange(rows) % 3 == 0,
        id=torch.arange(100, 100 + rows),
        copy=torch.zeros(rows, dtype=torch.int64),
        epoch=2,
        step=7,
        bad=[],
    )


def run(batch: Batch, seed: int = 1, **options: Any) -> tuple[torch.Tensor, Targets]:
    """The chain of a classifier with these options: images and targets."""
    network = torch.nn.Linear(1, 1)
    classifier = ImageClassifier(network, mean=MEAN, std=STD, seed=seed, **options)
    torch.rand(int(torch.randint(5, ())))  # the global generator plays no part
    return classifier.augment(batch, classifier.prepare)


def part(batch: Batch, rows: slice) -> Batch:
    return {**batch, **{k: batch[k][rows] for k in ("image", "label", "flip", "id", "copy")}}  # type: ignore[literal-required, return-value]


def levels(images: torch.Tensor) -> torch.Tensor:
    """Normalised images back as levels of 0 to 255."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    return (images * std + mean) * 255


def test_with_nothing_turned_on_it_flips_and_normalises_to_the_bit(batch: Batch) -> None:
    classifier = ImageClassifier(torch.nn.Linear(1, 1), mean=MEAN, std=STD)
    images, targets = classifier.augment(batch, classifier.prepare)
    assert torch.equal(images, classifier.prepare(batch["image"], batch["flip"]))
    assert targets.label is batch["label"]
    assert targets.other is None


def test_the_policy_works_on_whole_levels_before_normalisation(batch: Batch) -> None:
    images, _ = run(batch, policy=POLICY)
    found = levels(images)
    torch.testing.assert_close(found, found.round(), rtol=0, atol=1e-3)
    changed = (images != run(batch)[0]).flatten(1).any(1)
    assert changed.sum() >= 6  # about 13/14 of 12 rows, and some magnitudes are 0


def test_erasing_comes_behind_the_policy_and_leaves_the_mean_colour(batch: Batch) -> None:
    plain, _ = run(batch, policy=POLICY)
    images, _ = run(batch, policy=POLICY, erasing=ERASING)
    changed = images != plain
    assert changed.flatten(1).any(1).sum() >= 2  # about half of 12
    assert not images[changed].any()


@pytest.mark.parametrize("erasing", [ERASING, NOISE])
def test_mixing_comes_last(batch: Batch, erasing: ErasingConfig) -> None:
    before, _ = run(batch, policy=POLICY, erasing=erasing)
    seen = set()
    for epoch in range(6):
        now: Batch = {**batch, "epoch": epoch}
        before, _ = run(now, policy=POLICY, erasing=erasing)
        images, targets = run(now, policy=POLICY, erasing=erasing, mixing=MIXING)
        assert targets.other is not None
        partner = before[targets.other]  # labels are row numbers here
        if torch.isin(images, torch.cat((before, partner))).all():
            seen.add("cutmix")
            share = 1 - (images != before).any(1).flatten(1).float().mean(1).max()
            assert targets.share <= share + 1e-6
        else:
            seen.add("mixup")
            expected = targets.share * before + (1 - targets.share) * partner
            torch.testing.assert_close(images, expected)
    assert seen == {"cutmix", "mixup"}


def test_a_row_comes_out_the_same_in_any_micro_batch(batch: Batch) -> None:
    whole, _ = run(batch, policy=POLICY, erasing=ERASING)
    alone, _ = run(part(batch, slice(5, 6)), policy=POLICY, erasing=ERASING)
    assert torch.equal(alone[0], whole[5])


def test_mixing_and_noise_are_those_of_the_micro_batch(batch: Batch) -> None:
    options = {"policy": POLICY, "erasing": NOISE, "mixing": MIXING}
    images, targets = run(batch, **options)
    again, same = run(batch, **options)
    assert torch.equal(images, again)
    assert targets.share == same.share
    later: Batch = {**batch, "step": 8}
    assert torch.equal(run(later, **options)[0], images)  # follows from ids and epoch


@pytest.mark.parametrize(
    "options",
    [{"policy": POLICY}, {"erasing": ERASING}, {"mixing": MIXING}],
    ids=["policy", "erasing", "mixing"],
)
def test_epoch_seed_ids_and_repeats_make_other_draws(batch: Batch, options: dict[str, Any]) -> None:
    images, _ = run(batch, **options)
    others: list[Batch] = [
        {**batch, "epoch": 3},
        {**batch, "id": batch["id"] + 1000},
        {**batch, "copy": batch["copy"] + 1},
    ]
    for other in others:
        assert not torch.equal(run(other, **options)[0], images)
    assert not torch.equal(run(batch, seed=2, **options)[0], images)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_pixels_of_the_batch_stay_and_the_layout_is_what_was_asked_for(
    batch: Batch, channels_last: bool
) -> None:
    before = batch["image"].clone()
    images, _ = run(batch, policy=POLICY, erasing=NOISE, mixing=MIXING, channels_last=channels_last)
    assert torch.equal(batch["image"], before)
    assert images.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert images.dtype == torch.float32


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_mixed_precision_changes_nothing_of_it(batch: Batch, interpolation: Any) -> None:
    policy = PolicyConfig("rand-m7-mstd0.5-inc1", interpolation=interpolation)
    options = {"policy": policy, "erasing": NOISE, "mixing": MIXING}
    images, _ = run(batch, **options)
    with torch.autocast("cpu", torch.bfloat16):
        under, _ = run(batch, **options)
    assert under.dtype == torch.float32
    assert torch.equal(under, images)


def test_grey_images_take_part(batch: Batch) -> None:
    grey: Batch = {**batch, "image": batch["image"][:, :1]}
    classifier = ImageClassifier(
        torch.nn.Linear(1, 1), in_channels=1, mean=(0.5,), std=(0.2,), policy=POLICY,
        erasing=NOISE, mixing=MIXING,
    )  # fmt: skip
    images, _ = classifier.augment(grey, classifier.prepare)
    assert images.shape == (12, 1, 40, 40)


def test_what_is_turned_on_is_said_in_a_line() -> None:
    mixing = MixingConfig(mixup_alpha=0.2, cutmix_alpha=1.0, probability=0.8)
    off = (PolicyConfig(), ErasingConfig(), MixingConfig())
    assert DeviceAugment(*off, channels=3, seed=0).describe() == []
    assert DeviceAugment(POLICY, NOISE, mixing, channels=3, seed=0).describe() == [
        "augmentation: trivial_augment_wide (nearest), erasing of 50% (noise), "
        "mixup 0.2 or cutmix 1 in 80% of micro-batches"
    ]
    (line,) = DeviceAugment(*off[:2], MixingConfig(cutmix_alpha=1.0), channels=3, seed=0).describe()
    assert line == "augmentation: cutmix 1 in 100% of micro-batches"


def test_images_that_the_policy_is_not_for_are_refused() -> None:
    with pytest.raises(UserInputError, match="of 1 or 3 channels"):
        DeviceAugment(POLICY, ERASING, MIXING, channels=2, seed=0)
    with pytest.raises(UserInputError, match="of 1 or 3 channels"):
        ImageClassifier(torch.nn.Linear(1, 1), in_channels=2, policy=POLICY)
