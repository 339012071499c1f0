"""The loaders of one rank: what reads its samples, and the cache that follows what is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning.pytorch import Trainer

from resscale.data.augment import Crop
from resscale.data.batching import BatchPlan
from resscale.data.caching import Caching, RankPlace
from resscale.data.dataset import BatchRequest, ShardDataset
from resscale.data.decode import Decoder
from resscale.data.loader import (
    EvaluationLoader,
    TrainLoader,
    WorkerOptions,
    evaluation_requests,
)
from resscale.data.repeats import TrainOrder
from resscale.data.samples import Samples, ShardSamples
from resscale.data.sequential import PROMISE


def place_of(trainer: Trainer | None) -> RankPlace:
    """Return where this process stands among a trainer's ranks; without one it is alone."""
    if trainer is None:
        return RankPlace()
    world_size = trainer.world_size
    return RankPlace(
        trainer.global_rank, world_size, max(1, world_size // max(1, trainer.num_devices))
    )


@dataclass(frozen=True)
class TrainSteps:
    """Which batches training takes.

    Args:
        order: of any epoch of the run.
        plan: micro-batch, world size and accumulation.
        steps_per_epoch: that training takes.
        samples_seen: global samples already trained on.
        size_at: side of an epoch's images in pixels.
    """

    order: TrainOrder
    plan: BatchPlan
    steps_per_epoch: int
    samples_seen: int
    size_at: Callable[[int], int]


@dataclass(frozen=True)
class RankLoaders:
    """Builds the loaders of one rank.

    Args:
        caching: how servers are read, and what is kept of them.
        place: of the rank.
        workers: how batches are read.
        decoder: from files to pixels.
        channels: 3 for RGB, 1 for grey.
        seed: key of the augmentation.
        before_wait: called whenever a loader begins to wait for a batch.
    """

    caching: Caching
    place: RankPlace
    workers: WorkerOptions
    decoder: Decoder
    channels: int
    seed: int
    before_wait: Callable[[], None] | None = None

    def train(
        self, samples: Samples, crop: Crop, flip: bool, steps: TrainSteps, kept_bytes: int
    ) -> TrainLoader:
        """Return the training loader; it begins behind the samples seen.

        Args:
            samples: the training samples.
            crop: of training images.
            flip: mirror half of them, on the device.
            steps: which batches.
            kept_bytes: of the cache that evaluation keeps.
        """
        dataset = ShardDataset(
            samples,
            crop,
            self.decoder,
            channels=self.channels,
            seed=self.seed,
            flip=flip,
            replace_bad=True,
        )
        order, plan, per_epoch = steps.order, steps.plan, steps.steps_per_epoch
        loader = TrainLoader(
            dataset,
            order,
            plan,
            self.place.rank,
            self.workers,
            steps.samples_seen,
            per_epoch,
            steps.size_at,
        )
        loader.before_wait = self.before_wait
        if isinstance(samples, ShardSamples):
            loader.before_step = self.caching.follow_training(
                samples, order, plan, self.place, per_epoch, self.workers, kept_bytes
            )
        elif self.place.rank == 0:
            print(PROMISE.format(samples=len(samples)), flush=True)
        return loader

    def evaluation(self, samples: Samples, crop: Crop, batch_size: int) -> EvaluationLoader:
        """Return a loader that visits each sample once, over all ranks.

        Args:
            samples: to be evaluated.
            crop: of evaluation images.
            batch_size: rows of a batch, but no more than the rank has samples.
        """
        rank, world_size = self.place.rank, self.place.world_size
        size = min(batch_size, -(-len(samples) // world_size))
        requests = evaluation_requests(len(samples), size, rank, world_size)
        dataset = ShardDataset(samples, crop, self.decoder, channels=self.channels, seed=self.seed)
        followed: Sequence[BatchRequest] = requests
        if isinstance(samples, ShardSamples):
            followed = self.caching.follow_evaluation(samples, requests, self.place)
        loader = EvaluationLoader(dataset, followed, self.workers)
        loader.before_wait = self.before_wait
        return loader
