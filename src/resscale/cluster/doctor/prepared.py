"""What a configuration asks of a machine, with its network and its data at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from resscale.cluster.doctor.limits import Batches
from resscale.cluster.doctor.placement import Placement
from resscale.cluster.doctor.rates import Images
from resscale.data.batching import plan_batches
from resscale.data.datamodule import ShardDataModule
from resscale.errors import UserInputError
from resscale.training.checkpoint_space import expected_bytes
from resscale.training.classifier import ImageClassifier
from resscale.training.optim import build_optimizer


@dataclass(frozen=True)
class Prepared:
    """A configuration, parsed as `fit` does.

    Args:
        module: the network with its optimizer.
        data: the data.
        folder: where the run, or all runs, are to lie.
        accelerator: "auto", "gpu" or "cpu".
        num_nodes: `trainer.num_nodes`.
        devices: `trainer.devices`.
        dtype: of autocast; None: float32.
        keep_last: checkpoints that are kept.
        is_averaged: averaged weights are saved too.
        digest: names the configuration.
    """

    module: ImageClassifier
    data: ShardDataModule
    folder: Path
    accelerator: str = "auto"
    num_nodes: int = 1
    devices: int | str | Sequence[int] = "auto"
    dtype: torch.dtype | None = None
    keep_last: int = 2
    is_averaged: bool = False
    digest: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """What `fit` would read."""
        return ("train", "val") if self.data.locations["val"] is not None else ("train",)

    def checkpoint_bytes(self) -> int:
        """Return what a checkpoint will take."""
        module = self.module
        optimizer = build_optimizer(module.model, module.optimizer_config, module.global_batch_size)
        return expected_bytes(module, [optimizer], self.is_averaged)

    def batches(self, placement: Placement, num_workers: int) -> Batches | None:
        """Return what is on its way to a rank; None where the batch does not divide.

        Args:
            placement: the ranks.
            num_workers: reading processes of each.
        """
        data = self.data
        try:
            plan = plan_batches(data.global_batch_size, data.micro_batch_size, placement.world_size)
        except UserInputError:
            return None
        image = data.channels * data.train_crop.size**2
        options = data.worker_options(num_workers, on_gpu=False)
        return Batches(
            placement.per_node,
            # Threads hand over what they have read as it is.
            num_workers if options.kind == "processes" else 0,
            options.prefetch_factor,
            plan.micro_batch_size * image,
            placement.world_size,
        )

    def images(self) -> Images:
        """Return what the training images are like; their manifest must be readable."""
        options = self.data.manifest("train").source.get("options") or {}
        return Images(self.data.train_crop.size, options.get("resize"))

    def num_workers(self, cpus: int) -> int:
        """Return the reading processes that `fit` would start for a rank.

        Args:
            cpus: that the rank can count on.
        """
        if self.data.num_workers is not None:
            return self.data.num_workers
        return max(0, cpus - 1)
