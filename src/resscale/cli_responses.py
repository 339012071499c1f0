"""Layer responses of finished runs, for `resscale report --layer_responses`."""

from __future__ import annotations

from pathlib import Path

import torch

from resscale.cli_lightning import TrainCli
from resscale.cli_quiet import quiet_third_parties
from resscale.data.datamodule import ShardDataModule
from resscale.errors import UserInputError
from resscale.models import load_weights
from resscale.report.layer_responses import layer_responses, write_responses
from resscale.training.checkpoint import find_newest_valid, load_checkpoint
from resscale.training.classifier import ImageClassifier
from resscale.training.rundir import RunDir

NUM_IMAGES = 1000


def measure_responses(run: Path, num_images: int = NUM_IMAGES) -> Path:
    """Measure a run's newest weights on its first validation images; write and return the file.

    Args:
        run: the run directory.
        num_images: validation images, fewer where there are fewer.

    Raises:
        UserInputError: the run has no configuration, no whole checkpoint or no validation shards.
    """
    files = RunDir(run)
    checkpoint = find_newest_valid(files)
    if checkpoint is None or not files.config.is_file():
        raise UserInputError(
            f"{run} has no {'whole checkpoint' if files.config.is_file() else 'config.yaml'}, and "
            f"--layer_responses measures a trained net: train it first, or leave the run out."
        )
    quiet_third_parties()
    cli = TrainCli("validate", ["--config", str(files.config)])
    built = cli.parser.instantiate_classes(cli.config)
    model: ImageClassifier = built.model
    load_weights(model.model, checkpoint)
    images = _validation_images(built.data, num_images)
    with torch.no_grad():
        batches = [model.prepare(batch) for batch in torch.split(images, 100)]
    step = int(load_checkpoint(checkpoint)["global_step"])
    return write_responses(layer_responses(model.model, batches), run, len(images), step)


def _validation_images(data: ShardDataModule, count: int) -> torch.Tensor:
    """Return the first validation images, uint8 (N, C, H, W)."""
    data.num_workers = 0
    data.manifest("val")
    loader = data.val_dataloader()
    assert not isinstance(loader, list)
    found: list[torch.Tensor] = []
    for batch in loader:
        # Rows that only fill the last batch, and damaged ones, have the label -1.
        found.append(batch["image"][batch["label"] >= 0])
        if sum(map(len, found)) >= count:
            break
    return torch.cat(found)[:count]
