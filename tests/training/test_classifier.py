"""The classifier: what it feeds the network, its loss, its sums, and its keys."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from resscale import ImageClassifier
from resscale.data.dataset import Batch
from resscale.errors import UserInputError
from resscale.training.classifier import IMAGENET_MEAN, IMAGENET_STD
from resscale.training.losses import LossConfig, training_loss
from resscale.training.mixing import MixingConfig
from resscale.training.schedule import ScheduleConfig


class Flat(nn.Module):
    """A linear classifier of 3 × 4 × 4 pixels, with a layer of the test's choice before it."""

    def __init__(self, before: nn.Module | None = None, classes: int = 6) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        self.fc = nn.Linear(48, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.before(images).flatten(1))


@pytest.fixture
def batch() -> Batch:
    random = torch.Generator().manual_seed(3)
    return Batch(
        image=torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=random),
        label=torch.tensor([0, 5, 2, 1, 1]),
        flip=torch.tensor([True, False, False, True, False]),
        id=torch.tensor([17, 4, 99, 3, 0]),
        copy=torch.zeros(5, dtype=torch.int64),
        epoch=2,
        step=7,
        bad=[],
    )


def test_pixels_are_normalised_as_mean_and_std_say(batch: Batch) -> None:
    classifier = ImageClassifier(Flat(), num_classes=6)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = (batch["image"].double() / 255 - mean) / std
    prepared = classifier.prepare(batch["image"])
    assert prepared.dtype == torch.float32
    torch.testing.assert_close(prepared.double(), expected, rtol=0, atol=1e-6)


def test_grey_images_have_a_mean_of_their_own() -> None:
    classifier = ImageClassifier(Flat(), in_channels=1, mean=(0.5,), std=(0.25,))
    image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    # (0 - 0.5)/0.25 and (1 - 0.5)/0.25
    torch.testing.assert_close(classifier.prepare(image).flatten(), torch.tensor([-2.0, 2.0]))


def test_only_the_marked_rows_are_mirrored(batch: Batch) -> None:
    classifier = ImageClassifier(Flat())
    plain = classifier.prepare(batch["image"])
    mirrored = classifier.prepare(batch["image"], batch["flip"])
    for row, marked in enumerate(batch["flip"].tolist()):
        expected = plain[row].flip(-1) if marked else plain[row]
        assert torch.equal(mirrored[row], expected)
    assert not torch.equal(mirrored[0], plain[0])


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_network_sees_the_memory_layout_that_was_asked_for(
    batch: Batch, channels_last: bool
) -> None:
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    classifier = ImageClassifier(Flat(convolution), channels_last=channels_last)
    # A uint8 batch in channels_last memory, as the data set delivers it, and a plain one.
    for image in (batch["image"], batch["image"].to(memory_format=torch.channels_last)):
        prepared = classifier.prepare(image, batch["flip"])
        assert prepared.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert prepared.is_contiguous() == (not channels_last)
    weight = convolution.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_cross_entropy_on_the_mirrored_input(
    batch: Batch, smoothing: float
) -> None:
    classifier = ImageClassifier(Flat(), num_classes=6, label_smoothing=smoothing)
    prepared = classifier.prepare(batch["image"], batch["flip"])
    expected = functional.cross_entropy(
        classifier.model(prepared), batch["label"], label_smoothing=smoothing
    )
    assert classifier.training_step(batch, 0).item() == expected.item()


def test_the_loss_of_a_mixed_micro_batch_is_that_of_its_targets(batch: Batch) -> None:
    classifier = ImageClassifier(
        Flat(),
        num_classes=6,
        loss="bce",
        label_smoothing=0.1,
        target_threshold=0.2,
        mixing=MixingConfig(mixup_alpha=1.0),
    )
    images, targets = classifier.augment(batch, classifier.prepare)
    assert targets.other is not None
    expected = training_loss(classifier(images), targets, LossConfig("bce", 0.1, 0.2))
    assert classifier.training_step(batch, 0).item() == expected.item()


def test_top1_in_training_is_counted_against_the_label_of_the_larger_share(batch: Batch) -> None:
    classifier = ImageClassifier(Flat(), num_classes=6, mixing=MixingConfig(mixup_alpha=1.0))
    told_apart = 0
    for epoch in range(20):
        now: Batch = {**batch, "epoch": epoch}
        images, targets = classifier.augment(now, classifier.prepare)
        predicted = classifier(images).argmax(1)
        classifier.training_step(now, 0)
        correct = int((predicted == targets.larger).sum())
        assert classifier.take_sums()[1].item() == correct
        told_apart += correct != int((predicted == batch["label"]).sum())
    assert told_apart


def test_a_test_flip_averages_the_logits_of_image_and_mirror(batch: Batch) -> None:
    classifier = ImageClassifier(Flat(), num_classes=6, test_flip=True).eval()
    image = batch["image"]
    straight, mirrored = (
        classifier(classifier.prepare(pixels)) for pixels in (image, image.flip(-1))
    )
    torch.testing.assert_close(classifier.score(image), (straight + mirrored) / 2)
    assert torch.equal(classifier.score(image.flip(-1)), classifier.score(image))
    chances = ((straight + mirrored) / 2).softmax(1)
    predicted = classifier.predict_step(batch, 0)[1]
    torch.testing.assert_close(predicted, chances.topk(5).values)
    # Another network, such as an average of the weights, is judged in the same way.
    other = Flat()
    expected = (other(classifier.prepare(image)) + other(classifier.prepare(image.flip(-1)))) / 2
    torch.testing.assert_close(classifier.score(image, other), expected)
    # Training is not concerned.
    plain = ImageClassifier(classifier.model, num_classes=6)
    assert classifier.training_step(batch, 0).item() == plain.training_step(batch, 0).item()


def test_without_a_test_flip_the_network_runs_once(batch: Batch) -> None:
    classifier = ImageClassifier(Flat(), num_classes=6)
    calls: list[int] = []
    classifier.model.register_forward_hook(lambda *_: calls.append(1))
    logits = classifier.score(batch["image"])
    assert torch.equal(logits, classifier(classifier.prepare(batch["image"])))
    assert len(calls) == 2


def test_the_sums_are_of_all_rows_since_they_were_last_taken(batch: Batch) -> None:
    classifier = ImageClassifier(Flat(), num_classes=6)
    small: Batch = {**batch, **{k: batch[k][:2] for k in ("image", "label", "flip", "id")}}
    losses, correct = [], 0
    for one in (batch, small):
        losses.append(classifier.training_step(one, 0).item())
        logits = classifier(classifier.prepare(one["image"], one["flip"]))
        correct += int((logits.argmax(1) == one["label"]).sum())
    sums = classifier.take_sums()
    assert sums.dtype == torch.float64
    # A batch's mean loss counts as often as it has rows: 5 and 2.
    assert sums[0].item() == pytest.approx(5 * losses[0] + 2 * losses[1], rel=1e-6)
    assert sums[1:].tolist() == [correct, 5 + 2]
    assert classifier.take_sums().tolist() == [0, 0, 0]


def test_the_loss_keeps_its_gradient_and_the_sums_do_not(batch: Batch) -> None:
    classifier = ImageClassifier(Flat(), num_classes=6)
    classifier.training_step(batch, 0).backward()
    assert classifier.model.fc.weight.grad is not None
    assert not classifier.take_sums().requires_grad


@pytest.mark.parametrize(("classes", "expected"), [(6, 5), (3, 3)])
def test_predictions_are_the_likeliest_classes_in_order(
    batch: Batch, classes: int, expected: int
) -> None:
    classifier = ImageClassifier(Flat(classes=classes), num_classes=classes).eval()
    indices, probabilities = classifier.predict_step(batch, 0)
    assert indices.shape == probabilities.shape == (5, expected)
    sums = probabilities.sum(dim=1)
    assert bool((sums <= 1 + 1e-6).all())
    assert bool((probabilities[:, :-1] >= probabilities[:, 1:]).all())
    # Not mirrored: the marks are for training only.
    logits = classifier(classifier.prepare(batch["image"]))
    assert indices[:, 0].tolist() == logits.argmax(1).tolist()
    if classes == expected:
        torch.testing.assert_close(sums, torch.ones(5))


def test_weights_files_hold_the_network_alone() -> None:
    classifier = ImageClassifier("resnet20_cifar", 10, 1, mean=(0.3,), std=(0.4,))
    keys = list(classifier.state_dict())
    assert {key.partition(".")[0] for key in keys} == {"model"}
    assert [key.removeprefix("model.") for key in keys] == list(classifier.model.state_dict())


def test_the_normalisation_moves_with_the_module() -> None:
    classifier = ImageClassifier(Flat()).to("meta")
    assert classifier.pixel_scale.device.type == classifier.pixel_shift.device.type == "meta"


def test_a_named_network_gets_its_classes_channels_and_options() -> None:
    classifier = ImageClassifier(
        "resnet18", num_classes=7, in_channels=1, model_options={"stem": "cifar"}
    )
    assert classifier.model.conv1.weight.shape == (64, 1, 3, 3)
    assert classifier.model.fc.out_features == 7


def test_a_module_of_ones_own_is_taken_as_it_is() -> None:
    network = Flat()
    classifier = ImageClassifier(network, num_classes=6)
    assert classifier.model is network
    assert classifier.num_parameters == 48 * 6 + 6
    network.fc.bias.requires_grad_(False)
    assert classifier.num_parameters == 48 * 6


def test_macs_are_counted_for_networks_of_the_family_only() -> None:
    assert ImageClassifier(Flat(), num_classes=6).num_macs(4) is None
    classifier = ImageClassifier("resnet8_cifar", num_classes=10, in_channels=1)
    # Stem 1 to 16, then 2 + 1.5 + 1.5 times 16 · 16 · 9 per pixel of 64 (each stage has 4 times
    # the products on a quarter of the pixels; its first layer half the inputs), then 64 to 10.
    assert classifier.num_macs(8) == 16 * 9 * 64 + 5 * 16 * 16 * 9 * 64 + 640


def test_an_unknown_network_suggests_the_nearest() -> None:
    with pytest.raises(UserInputError, match="Did you mean 'resnet50'"):
        ImageClassifier("resnet5")


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.FeatureAlphaDropout(0.5)])
def test_stochastic_layers_depend_on_the_micro_batch_only(batch: Batch, layer: nn.Module) -> None:
    classifier = ImageClassifier(Flat(layer), num_classes=6, seed=1)

    def loss(of: Batch, noise_before: int = 0) -> float:
        torch.rand(noise_before)
        classifier.on_train_batch_start(of, 0)
        return classifier.training_step(of, 0).item()

    first = loss(batch)
    assert loss(batch, noise_before=100) == first
    assert loss({**batch, "epoch": 3}) != first
    assert loss({**batch, "id": batch["id"] + 1}) != first
    assert loss({**batch, "step": 8}) == first  # follows from the ids and the epoch
    classifier.seed = 2
    assert loss(batch) != first


def test_each_micro_batch_has_noise_of_its_own(batch: Batch) -> None:
    noise: dict[int, float] = {}
    classifier = ImageClassifier(Flat())
    for number in range(50):
        classifier.on_train_batch_start({**batch, "id": torch.tensor([number])}, number)
        noise[number] = float(torch.rand(()))
    assert len(set(noise.values())) == 50
    # And the same one again, whatever came before.
    for number in (7, 3):
        classifier.on_train_batch_start({**batch, "id": torch.tensor([number])}, 0)
        assert float(torch.rand(())) == noise[number]


class FakeTrainer:
    """What `configure_optimizers` asks of a trainer: 90 epochs of 100 steps."""

    estimated_stepping_batches = 9000
    num_training_batches = 400
    accumulate_grad_batches = 4


@pytest.fixture
def rate_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[ScheduleConfig, int], float]:
    """A function that returns the rate of a step by the schedule that Lightning gets."""

    def rate(schedule: ScheduleConfig, step: int) -> float:
        monkeypatch.setattr(ImageClassifier, "trainer", FakeTrainer(), raising=False)
        classifier = ImageClassifier(Flat(), schedule=schedule, global_batch_size=1024)
        made: Any = classifier.configure_optimizers()
        assert made["lr_scheduler"]["interval"] == "step"
        scheduler = made["lr_scheduler"]["scheduler"]
        base: float = scheduler.base_lrs[0]
        return base * scheduler.lr_lambdas[0](step)

    return rate


def test_a_run_cut_short_by_max_steps_keeps_the_length_of_epochs(
    rate_at: Callable[[ScheduleConfig, int], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeTrainer, "estimated_stepping_batches", 800)
    schedule = ScheduleConfig("cosine", warmup_epochs=5)
    # 5 × 100 steps of warm-up, however few steps there are in all.
    assert rate_at(schedule, 250 - 1) == pytest.approx(0.2)
    assert rate_at(schedule, 500 + 150) == pytest.approx(0.2)  # half of the 300 left


def test_the_schedule_counts_steps_of_the_whole_run(
    rate_at: Callable[[ScheduleConfig, int], float],
) -> None:
    # 0.1 · 1024/256 = 0.4; 90 epochs of 100 steps, 5 of them warm-up.
    schedule = ScheduleConfig("cosine", warmup_epochs=5)
    assert rate_at(schedule, 0) == pytest.approx(0.4 / 500)
    assert rate_at(schedule, 499) == pytest.approx(0.4)
    assert rate_at(schedule, 500 + 4250) == pytest.approx(0.2)  # half of the 8,500 left
    assert rate_at(ScheduleConfig("step"), 3000) == pytest.approx(0.04)  # epoch 30
