"""An exponential moving average of the weights, evaluated beside the weights themselves."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from resscale.data.dataset import Batch
from resscale.training.classifier import ImageClassifier
from resscale.training.ema_checkpoint import EMA_KEY
from resscale.training.ema_decay import EmaConfig, decay_at
from resscale.training.ema_state import AveragedNetwork
from resscale.training.evaluation import Evaluation
from resscale.training.position import Position


class WeightAverage(Callback):
    """Follows the weights by an average, measures it at each validation, and saves it.

    The average moves once per optimizer step, on the device. A step of float16 training that was
    skipped for an overflow counts too: the average takes the unchanged weights once more.
    Validation runs both networks on each batch and logs `val/ema_loss`, `val/ema_top1` and
    `val/ema_top5` beside the weights' own.

    Args:
        config: the decay, not None.
    """

    def __init__(self, config: EmaConfig) -> None:
        super().__init__()
        assert config.decay is not None, "without a decay there is nothing to do"
        self.decay = config.decay
        self.warmup = config.warmup
        self.averaged: AveragedNetwork | None = None
        self._loaded: dict[str, Tensor] | None = None
        self._network: nn.Module | None = None
        self._evaluation: Evaluation | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the network, before the strategy wraps or shares it out."""
        if stage == "fit":
            self.averaged = AveragedNetwork(_network_of(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """Return how often the average has moved."""
        return {"updates": self.averaged.updates if self.averaged else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        assert self.averaged is not None
        self.averaged.updates = state_dict["updates"]

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the average, as whole tensors whatever the strategy."""
        averaged = self._following()
        if averaged is not None:
            checkpoint[EMA_KEY] = averaged.state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the average until the strategy is set up: some load before it, some behind."""
        self._loaded = checkpoint.get(EMA_KEY)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the checkpoint's average, or else with the weights."""
        assert self.averaged is not None
        self.averaged.attach(_network_of(pl_module), trainer.strategy.root_device)
        if self._loaded is not None:
            self.averaged.load_state_dict(self._loaded)
        self._loaded = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Move the average behind each optimizer step."""
        averaged = self.averaged
        assert averaged is not None
        if Position.of(trainer).is_step_boundary:
            update = averaged.updates + 1
            averaged.update(decay_at(update, self.decay) if self.warmup else self.decay)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        averaged = self._following()
        if averaged is not None:
            self._network = averaged.gather()
            self._evaluation = Evaluation(pl_module.num_classes, pl_module.device)  # type: ignore[arg-type]

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the batch that the weights have just been scored on."""
        if self._network is None or self._evaluation is None:
            return
        assert isinstance(pl_module, ImageClassifier)
        with trainer.precision_plugin.val_step_context():
            logits = pl_module.score(batch["image"], self._network)
        self._evaluation.update(logits, batch["label"], batch["id"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log loss, top-1 and top-5 of the average over all ranks."""
        if self.averaged is None or self._evaluation is None:
            return
        # The classifier's own evaluation asserts that each sample was visited once.
        result = self._evaluation.compute(expected=None)
        self._evaluation = self._network = None
        self.averaged.release()
        names = ("loss", "top1", "top5")
        # As the classifier logs its own: the monitor writes the row.
        pl_module.log_dict(
            {f"val/ema_{name}": result[name] for name in names}, logger=False, sync_dist=True
        )

    def _following(self) -> AveragedNetwork | None:
        """Return the average to measure or save; None outside training.

        Before its first update it is the network as it is: BatchNorm's statistics may have moved
        on already, and an average that lacks them would say nothing.
        """
        averaged = self.averaged
        if averaged is None or not averaged.is_attached:
            return None
        if averaged.updates == 0:
            averaged.take()
        return averaged


def _network_of(pl_module: LightningModule) -> nn.Module:
    network = pl_module.model
    assert isinstance(network, nn.Module), "the classifier's network"
    return network
