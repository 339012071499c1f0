"""A configuration of `fit`, read for `resscale plan`: same parser, same refusals, no trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resscale.cli_errors import explain_refusal
from resscale.cli_lightning import TrainCli, with_saved_config
from resscale.cli_quiet import quiet_third_parties
from resscale.data.datamodule import ShardDataModule
from resscale.errors import UserInputError
from resscale.report.plan_data import IMAGENET_VAL, Images, imagenet, scaled_images
from resscale.report.plan_request import Training
from resscale.training.classifier import ImageClassifier
from resscale.training.precision import precision_name
from resscale.training.strategy import (
    DistributedDataParallel,
    choose_strategy,
    register_strategies,
)
from resscale.training.zero import ZeRO


@dataclass(frozen=True)
class Configured:
    """What a configuration says of a run.

    Args:
        training: what is trained.
        nodes: `trainer.num_nodes`.
        devices: `trainer.devices` where it is a number, else 1.
    """

    training: Training
    nodes: int
    devices: int


def read_config(words: Sequence[str], train_images: int | None = None) -> Configured:
    """Return what the arguments of `resscale fit` come to.

    Args:
        words: those arguments.
        train_images: of an epoch, where no manifest is at hand; None: ImageNet's.

    Raises:
        UserInputError: what `fit` would refuse.
    """
    quiet_third_parties()
    register_strategies()
    cli = TrainCli("fit", with_saved_config("fit", list(words)))
    try:
        # The parts alone: a trainer would want ranks, and a run its directory.
        parts: Any = cli.parser.instantiate_classes(cli.config)
    except ValueError as error:
        refusal = explain_refusal(str(error))
        if refusal is None:
            raise
        raise UserInputError(refusal) from error
    return Configured(
        training=_training(cli.config, parts, train_images),
        nodes=int(cli.config.trainer.num_nodes),
        devices=_devices(cli.config.trainer.devices),
    )


def _training(config: Any, parts: Any, train_images: int | None) -> Training:
    model: ImageClassifier = parts.model
    data: ShardDataModule = parts.data
    trainer = parts.trainer
    name = config.model.model
    if not isinstance(name, str):
        raise UserInputError("resscale plan knows the nets of `resscale models`: name one of them.")
    epochs = trainer["max_epochs"]
    if epochs is None or epochs < 1:
        raise UserInputError(f"trainer.max_epochs={epochs} must be at least 1.")
    optimizer = model.optimizer_config
    return Training(
        model=name,
        num_classes=model.num_classes,
        in_channels=model.in_channels,
        model_options=dict(config.model.model_options or {}),
        sizes=tuple(data.train_sizes.at(epoch) for epoch in range(epochs)),
        eval_size=data.eval_crop.size,
        global_batch_size=data.global_batch_size,
        micro_batch_size=data.micro_batch_size,
        precision=precision_name(trainer["precision"]),
        **_strategy(choose_strategy(trainer["strategy"])),
        optimizer=optimizer.name,
        implementation=optimizer.implementation,
        momentum=optimizer.momentum,
        is_averaged=config.ema.decay is not None,
        is_compiled=config.model.compile is not None,
        # A cluster is planned for, where the native decoder can be built.
        decoder="native" if data.decoder == "auto" else data.decoder,
        partitions=data.partitions,
        window=data.window,
        shuffle=data.shuffle,
        images=_images(data, train_images),
        num_val=_num_val(data),
        eval_every=trainer["check_val_every_n_epoch"] or 1,
        explain_lr=optimizer.explain_lr(data.global_batch_size),
    )


def _devices(said: Any) -> int:
    if isinstance(said, list | tuple):
        return len(said)
    return int(said) if str(said).isdigit() and int(said) > 0 else 1


def _strategy(strategy: Any) -> dict[str, Any]:
    """Return what a strategy means for memory and sending, as arguments of `Training`."""
    if isinstance(strategy, ZeRO):
        return {
            "stage": strategy.stage,
            "release_gathered": strategy.stage == 3,
            "offload_optimizer": strategy.offload_optimizer,
        }
    if isinstance(strategy, DistributedDataParallel):
        return {"compressed": strategy.gradient_compression is not None}
    if isinstance(strategy, str) and strategy.startswith("deepspeed_"):
        stage = int(strategy[-1])
        return {"stage": stage, "release_gathered": stage == 3}
    return {}


def _images(data: ShardDataModule, train_images: int | None) -> Images:
    if train_images is not None:
        if train_images < 1:
            raise UserInputError(f"--train-images {train_images} must be at least 1.")
        return scaled_images(train_images)
    if not _is_at_hand(data.locations["train"]):
        return imagenet()
    manifest = data.manifest("train")
    options = manifest.source.get("options") or {}
    return Images(
        manifest.num_samples,
        int(manifest.table.bytes.sum()),
        manifest.shard_sizes,
        manifest.table.bytes,
        options.get("resize"),
    )


def _num_val(data: ShardDataModule) -> int:
    place = data.locations["val"]
    if place is None:
        return 0
    return data.manifest("val").num_samples if _is_at_hand(place) else IMAGENET_VAL


def _is_at_hand(place: str | None) -> bool:
    """Tell whether a manifest can be looked at without a server."""
    if place is None or "://" in place:
        return False
    return place.startswith("builtin:") or (Path(place) / "manifest.json").is_file()
