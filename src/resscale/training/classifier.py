"""The LightningModule: an image classifier over any network of the family."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from resscale.data.datamodule import ShardDataModule
from resscale.data.dataset import Batch
from resscale.data.permutation import mix_key
from resscale.errors import UserInputError
from resscale.models import ResNet, count_macs, create_model
from resscale.training.batchnorm import StepStatistics, average_batchnorm_statistics
from resscale.training.compiling import compile_network
from resscale.training.device_augment import DeviceAugment, mirror, row_ids
from resscale.training.erasing import ErasingConfig
from resscale.training.evaluation import Evaluation
from resscale.training.losses import LossConfig, LossName, training_loss
from resscale.training.mixing import MixingConfig
from resscale.training.optim import OptimizerConfig, build_optimizer, take_numbers
from resscale.training.partition import is_partitioned
from resscale.training.policies import PolicyConfig
from resscale.training.schedule import ScheduleConfig, lr_at

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_STOCHASTIC = 21


class ImageClassifier(LightningModule):
    """Trains a network on `resscale.data` batches.

    Args:
        model: name of a network (`resscale.list_models()`), or a module giving logits.
        num_classes: number of classes.
        in_channels: image channels.
        model_options: further options of `create_model`.
        optimizer: the optimizer.
        schedule: the learning rate's course.
        loss: of training: "cross_entropy" or "bce"; see `LossConfig`.
        label_smoothing: share of the target spread over all classes (Szegedy et al. 2015, sec. 7).
        target_threshold: of "bce": targets above it become 1 and all others 0.
        policy: TrivialAugment or RandAugment on the device.
        erasing: random erasing on the device.
        mixing: mixup and cutmix on the device.
        test_flip: evaluation and prediction average the logits of each image and of its mirror.
        mean: per channel, of pixels in 0 to 1; subtracted on the device. None: ImageNet's, for
            other than 3 channels their average.
        std: per channel; divided by on the device. None: ImageNet's likewise.
        channels_last: keep weights and activations in channels_last memory, the faster layout.
        compile: backend of torch.compile for the network, such as "inductor"; None: eager. Weights
            keep their names, so compiled and eager runs share checkpoints.
        compile_mode: what inductor takes time for: "default", "reduce-overhead" (CUDA graphs),
            "max-autotune" or "max-autotune-no-cudagraphs".
        global_batch_size: samples per optimizer step over all ranks; scales the learning rate.
        seed: names the run's stochastic layers (dropout, stochastic depth).
    """

    def __init__(
        self,
        model: str | nn.Module = "resnet50",
        num_classes: int = 1000,
        in_channels: int = 3,
        model_options: dict[str, Any] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - frozen
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 - frozen
        loss: LossName = "cross_entropy",
        label_smoothing: float = 0.0,
        target_threshold: float | None = None,
        policy: PolicyConfig = PolicyConfig(),  # noqa: B008 - frozen
        erasing: ErasingConfig = ErasingConfig(),  # noqa: B008 - frozen
        mixing: MixingConfig = MixingConfig(),  # noqa: B008 - frozen
        test_flip: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        channels_last: bool = True,
        compile: str | None = None,
        compile_mode: str | None = None,
        global_batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        mean = mean or channels_of(IMAGENET_MEAN, in_channels)
        std = std or channels_of(IMAGENET_STD, in_channels)
        _check_arguments(in_channels, mean, std)
        self.loss_config = LossConfig(loss, label_smoothing, target_threshold)
        self.loss_config.check_classes(num_classes)
        self.augment = DeviceAugment(policy, erasing, mixing, in_channels, seed)
        if isinstance(model, str):
            model = create_model(model, num_classes, in_channels, **(model_options or {}))
        self.model = model
        if channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        compile_network(self.model, compile, compile_mode)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.optimizer_config = optimizer
        self.schedule_config = schedule
        self.test_flip = test_flip
        self.channels_last = channels_last
        self.global_batch_size = global_batch_size
        self.seed = seed
        # (x / 255 - mean) / std as one multiply and one add; not persistent: weights files stay
        # those of the network alone.
        means, stds = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        scale, shift = 1.0 / (255.0 * stds), -means / stds
        self.register_buffer("pixel_scale", scale, persistent=False)
        self.register_buffer("pixel_shift", shift, persistent=False)
        self.pixel_scale: Tensor
        self.pixel_shift: Tensor
        self._evaluation: Evaluation | None = None
        self._num_macs: dict[int, int] = {}
        self._statistics = StepStatistics(self.model)
        # Sums over the micro-batches since the last take: loss × n, correct, n.
        self._sums: Tensor | None = None

    @property
    def num_parameters(self) -> int:
        """Trainable parameters of the network."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    def check_image_size(self, image_size: int) -> None:
        """Find images that are too small for the network before training begins.

        Raises:
            UserInputError: they are.
        """
        if isinstance(self.model, ResNet):
            self.model.check_size(image_size, image_size)

    def num_macs(self, image_size: int) -> int | None:
        """Multiply-accumulates of one image's forward pass; None for a network not of ours.

        Under ZeRO-3 it is known for the images that are trained on; None for other sizes.

        Args:
            image_size: pixels per side.
        """
        if not isinstance(self.model, ResNet):
            return None
        # Counting takes seconds for a net of a thousand layers, and several ask.
        if image_size not in self._num_macs:
            if any(is_partitioned(parameter) for parameter in self.model.parameters()):
                return None
            self._num_macs[image_size] = count_macs(self.model, image_size, self.in_channels)
        return self._num_macs[image_size]

    def setup(self, stage: str) -> None:
        """Count what a forward pass costs, before a strategy shares the weights out."""
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, ShardDataModule):
            for size in data.train_sizes.all:
                self.num_macs(size)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, num_classes) of prepared images (N, C, H, W)."""
        logits: Tensor = self.model(images)
        return logits

    def prepare(self, image: Tensor, flip: Tensor | None = None) -> Tensor:
        """Mirror the marked rows and normalise: uint8 (N, C, H, W) becomes float32."""
        if flip is not None:
            image = mirror(image, flip)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        pixels = image.to(torch.float32, memory_format=layout)
        return torch.addcmul(self.pixel_shift, pixels, self.pixel_scale)

    def score(self, image: Tensor, network: nn.Module | None = None) -> Tensor:
        """Return what evaluation judges: float32 logits (N, num_classes).

        With `test_flip` they are the mean of the logits of the image and of its mirror.

        Args:
            image: uint8 (N, C, H, W).
            network: another one than the module's own, such as an average of its weights.
        """
        run = self if network is None else network
        logits: Tensor = run(self.prepare(image)).float()
        if not self.test_flip:
            return logits
        # Halved before the second pass, which may reuse the memory of the first one's result.
        logits = logits * 0.5
        mirrored: Tensor = run(self.prepare(image.flip(-1))).float()
        return logits + mirrored * 0.5

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Key stochastic layers by the micro-batch, so that ranks and restarts do not matter."""
        first = int(row_ids(batch)[0])
        seed = mix_key(self.seed, _STOCHASTIC, batch["epoch"], first) >> 1
        # Not torch.manual_seed: for each kind of device that is not there it formats a traceback.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a micro-batch."""
        count = self._trainer.accumulate_grad_batches if self._trainer is not None else 1
        number = batch_idx % count
        self._statistics.before_forward(number, count)
        images, targets = self.augment(batch, self.prepare)
        logits = self(images)
        self._statistics.after_forward(number, count)
        loss = training_loss(logits, targets, self.loss_config)
        with torch.no_grad():
            rows = torch.full((), float(len(logits)), device=logits.device)
            correct = (logits.argmax(dim=1) == targets.larger).sum()
            sums = torch.stack([loss.detach().float() * rows, correct.float(), rows])
            # No .item() here: the sums are read when they are logged, not at each step.
            self._sums = sums if self._sums is None else self._sums + sums
        return loss

    def take_sums(self) -> Tensor:
        """Return (loss × n, correct, n) since the last call, float64 (3,) on the host."""
        sums = torch.zeros(3) if self._sums is None else self._sums
        self._sums = None
        return sums.double().cpu()

    def on_validation_epoch_start(self) -> None:
        """Begin to count, with statistics that are the same on all ranks."""
        average_batchnorm_statistics(self)
        self._evaluation = Evaluation(self.num_classes, self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch."""
        assert self._evaluation is not None
        logits = self.score(batch["image"])
        self._evaluation.update(logits, batch["label"], batch["id"], len(batch["bad"]))

    def on_validation_epoch_end(self) -> None:
        """Log loss, top-1 and top-5 over all ranks."""
        self._finish_evaluation("val")

    def on_test_epoch_start(self) -> None:
        """Begin to count."""
        self.on_validation_epoch_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log loss, top-1 and top-5 over all ranks."""
        self._finish_evaluation("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return the five likeliest classes, int64 (N, 5), and their probabilities (N, 5)."""
        top = self.score(batch["image"]).softmax(dim=1).topk(min(5, self.num_classes), dim=1)
        return top.indices, top.values

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, and a schedule evaluated at each optimizer step."""
        optimizer = build_optimizer(
            self.model, self.optimizer_config, self.global_batch_size, self.device
        )
        total_steps = int(self.trainer.estimated_stepping_batches)
        # `max_steps` cuts training short, not its epochs; without `max_epochs` it is one epoch.
        batches = self.trainer.num_training_batches
        steps = batches / self.trainer.accumulate_grad_batches
        steps_per_epoch = max(1, int(steps) if math.isfinite(steps) else total_steps)

        def factor(step: int) -> float:
            return lr_at(
                step,
                self.schedule_config,
                base_lr=1.0,
                steps_per_epoch=steps_per_epoch,
                total_steps=total_steps,
            )

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the optimizer's numbers of now, such as a lower rate behind a divergence."""
        fresh = build_optimizer(self.model, self.optimizer_config, self.global_batch_size)
        take_numbers(checkpoint, fresh)

    def _finish_evaluation(self, stage: str) -> None:
        assert self._evaluation is not None
        expected = _expected_samples(self, stage)
        result = self._evaluation.compute(expected)
        self._evaluation = None
        # logger=False: the monitor writes the row, with the step it belongs to.
        # sync_dist: the ranks' values are equal already, but only so does Lightning know it.
        self.log_dict(
            {f"{stage}/{name}": value for name, value in result.items()},
            logger=False,
            sync_dist=True,
        )


def channels_of(values: tuple[float, ...], in_channels: int) -> tuple[float, ...]:
    """Return per-channel values for `in_channels`: as they are, or for another number their mean.

    Args:
        values: a mean or deviation per channel, such as `IMAGENET_MEAN`.
        in_channels: image channels.
    """
    return values if in_channels == len(values) else (sum(values) / len(values),)


def _check_arguments(in_channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, in_channels):
            raise UserInputError(
                f"model.{name}={list(values)} has {len(values)} values for images of {in_channels} "
                f"channels; give {in_channels} of them, or 1 for all."
            )
    if min(std) <= 0:
        raise UserInputError(f"model.std={list(std)} must be above 0.")


def _expected_samples(module: ImageClassifier, stage: str) -> int | None:
    """Return how many samples this evaluation must visit; None where it was cut short by a flag."""
    trainer = module.trainer
    if trainer.sanity_checking:
        return None
    loaders = trainer.test_dataloaders if stage == "test" else trainer.val_dataloaders
    batches = trainer.num_test_batches if stage == "test" else trainer.num_val_batches
    if loaders is None or sum(batches) != len(loaders) or not hasattr(loaders, "dataset"):
        return None
    return len(loaders.dataset)
