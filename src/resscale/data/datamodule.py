"""The LightningDataModule: what the user says of the data, and the loaders that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule

from resscale.data.batching import (
    BatchPlan,
    check_accumulation,
    check_batch_fits,
    check_counts,
    plan_batches,
    steps_of_limited_epoch,
)
from resscale.data.caching import Caching
from resscale.data.crops import RATIO, TrainCrop, build_eval_crop, build_train_crop
from resscale.data.dataset import Batch
from resscale.data.decode import Decoder
from resscale.data.decoders import DecoderChoice, DecoderName, build_decoder, choose_decoder
from resscale.data.loader import EvaluationLoader, StartMethod, TrainLoader, WorkerOptions
from resscale.data.loaders import RankLoaders, TrainSteps, place_of
from resscale.data.manifest import Manifest
from resscale.data.order import DEFAULT_WINDOW, Shuffle
from resscale.data.progressive import ProgressiveConfig, TrainSizes
from resscale.data.reader_choice import (
    WorkerChoice,
    check_num_workers,
    choose_worker_kind,
    readers_per_rank,
)
from resscale.data.repeats import TrainOrder, build_order, check_no_repeats, check_repeats
from resscale.data.samples import Samples
from resscale.data.sequential import StreamPlace
from resscale.data.splits import Splits


class ShardDataModule(LightningDataModule):
    """Streams WebDataset shards in an order that is the same for any number of ranks and workers.

    Args:
        train: folder or address of training shards, or a pattern of shards
            (`s3://bucket/train-{000..099}.tar`), or `builtin:digits/train`, or `pipe:` and a
            command. Shards without a manifest are indexed once, into the user's cache folder.
        val: folder of validation shards.
        test: folder of test shards.
        predict: folder of shards, folder of images, or one image to predict.
        global_batch_size: samples per optimizer step over all ranks, each copy counted.
        micro_batch_size: samples per forward pass of a rank, and so per BatchNorm batch; the rest
            is accumulated. None: the rank's whole share.
        eval_batch_size: samples per evaluation pass of a rank. None: the micro-batch's.
        image_size: side of the training crop, pixels; with `progressive` what it grows to.
        progressive: smaller images in the first epochs.
        train_crop: "random_resized" (ImageNet), "pad" (CIFAR: shifted by up to `pad` pixels) or
            "center" (none).
        scale: share of the image's area that a random_resized crop covers.
        ratio: width over height of a random_resized crop's region.
        pad: largest shift of a "pad" crop, pixels.
        flip: mirror half of the training images, on the device.
        repeats: copies of each sample in its global batch, each augmented by itself; `repeats`
            epochs together take each sample in one step. See `RepeatedOrder`.
        eval_size: side of the evaluation crop, pixels. None: image_size.
        eval_resize: shorter side before the evaluation crop, pixels. None: see `build_eval_crop`.
        channels: 3 for RGB, 1 for grey.
        shuffle: "full", "window" or "none"; see `EpochOrder`.
        window: samples per shuffle window.
        partitions: runs of shards that nodes keep to; see `EpochOrder`.
        seed: names the order and the augmentation.
        num_workers: readers per rank. None: the rank's share of the CPU cores less one.
        worker_kind: readers are "processes" or "threads"; "auto": threads for the native decoder.
        start_method: how reading processes start.
        max_bad_fraction: share of damaged samples past which training ends with exit code 70.
        log_sample_ids: write the ids of each consumed batch to `<run_dir>/samples/`.
        decoder: what turns files into pixels: "native", "nvimgcodec", "simplejpeg", "pillow", or
            "auto": the one that the run has used so far, else the fastest that works here.
        cache: folder on a disk of each node (or in /dev/shm) for shards that lie on servers; all
            ranks and runs of the node may share it. None: each epoch reads them again.
        cache_gb: most gigabytes in it. None: half of what is free on its disk.
        cache_local: cache local shards too, as those on a slow network file system.
        storage_options: fsspec's options by protocol: {s3: {endpoint_url: ..., anon: true}}.
        give_up_s: seconds without a byte from a server after which the run ends (exit code 69).
        epoch_samples: samples of an epoch over all ranks, of training data that cannot be counted
            (`pipe:` commands and compressed tars).
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        predict: str | None = None,
        global_batch_size: int = 256,
        micro_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        image_size: int = 224,
        progressive: ProgressiveConfig = ProgressiveConfig(),  # noqa: B008 - frozen
        train_crop: TrainCrop = "random_resized",
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = RATIO,
        pad: int = 4,
        flip: bool = True,
        repeats: int = 1,
        eval_size: int | None = None,
        eval_resize: int | None = None,
        channels: Literal[1, 3] = 3,
        shuffle: Shuffle = "window",
        window: int = DEFAULT_WINDOW,
        partitions: int = 1,
        seed: int = 0,
        num_workers: int | None = None,
        worker_kind: WorkerChoice = "auto",
        start_method: StartMethod = "forkserver",
        max_bad_fraction: float = 0.001,
        log_sample_ids: bool = False,
        decoder: DecoderChoice = "auto",
        cache: str | None = None,
        cache_gb: float | None = None,
        cache_local: bool = False,
        storage_options: dict[str, dict[str, Any]] | None = None,
        give_up_s: float = 300.0,
        epoch_samples: int | None = None,
    ) -> None:
        super().__init__()
        check_counts(
            image_size=image_size,
            eval_size=eval_size,
            eval_resize=eval_resize,
            eval_batch_size=eval_batch_size,
            global_batch_size=global_batch_size,
            epoch_samples=epoch_samples,
            repeats=repeats,
        )
        check_repeats(repeats, global_batch_size, partitions)
        check_num_workers(num_workers)
        self.locations = {"train": train, "val": val, "test": test, "predict": predict}
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.eval_batch_size = eval_batch_size
        self.channels = channels
        self.flip = flip
        self.repeats = repeats
        self.shuffle: Shuffle = shuffle
        self.window = window
        self.partitions = partitions
        self.seed = seed
        self.num_workers = num_workers
        self.worker_kind = worker_kind
        self.start_method: StartMethod = start_method
        self.max_bad_fraction = max_bad_fraction
        self.log_sample_ids = log_sample_ids
        self.decoder = decoder
        # What the run that is gone on with was decoded with, where a checkpoint says so.
        self.decoder_before: str | None = None
        self.caching = Caching(cache, cache_gb, cache_local, storage_options, give_up_s)
        self.splits = Splits(self.locations, self.caching, epoch_samples)
        self.samples_seen = 0
        self.train_sizes = TrainSizes(progressive, image_size)
        # At the full size; the loader brings it to that of the epoch.
        self.train_crop = build_train_crop(train_crop, image_size, scale, pad, ratio)
        self.eval_crop = build_eval_crop(train_crop, eval_size or image_size, eval_resize)
        self._train_loader: TrainLoader | None = None
        # Of the model, where it is known: labels outside are found when they are read.
        self._num_classes: int | None = None
        # CPUs of this rank, where somebody knows better than the process's affinity says.
        self.cpus_per_rank: int | None = None
        # Called whenever a loader begins to wait for a batch; for loaders that are built later.
        self.before_wait: Callable[[], None] | None = None

    def manifest(self, split: str) -> Manifest:
        """Return the checked manifest of "train", "val", "test" or "predict".

        Raises:
            UserInputError: no shards are named for it, or they are not what the manifest says.
        """
        return self.splits.manifest(split)

    def samples(self, split: str) -> Samples:
        """Return the encoded samples of a split; for "predict" they may be plain image files."""
        at, shuffles = place_of(self.trainer), self.shuffle != "none"
        place = StreamPlace(at.rank, at.world_size, self.seed, self.samples_seen, shuffles)
        return self.splits.samples(split, self._workers(), place, self._num_classes)

    @property
    def decoder_name(self) -> DecoderName:
        """Name of the decoder that `decoder` comes to here; raises what `choose_decoder` does."""
        return choose_decoder(self.decoder, self.decoder_before)

    def build_decoder(self) -> Decoder:
        """Return a decoder for the images of this data set; raises what `choose_decoder` does."""
        return build_decoder(self.decoder_name, self.channels)

    def worker_options(self, num_workers: int, *, on_gpu: bool) -> WorkerOptions:
        """Return how batches are read.

        Args:
            num_workers: readers of this rank.
            on_gpu: batches go to a GPU.
        """
        kind = choose_worker_kind(
            self.worker_kind, self.decoder_name, is_sequential=self.splits.is_sequential
        )
        return WorkerOptions(num_workers, self.start_method, pin_memory=on_gpu, kind=kind)

    def order(self) -> TrainOrder:
        """Return the training order of epoch 0.

        Raises:
            UserInputError: fewer samples than one global batch, or repeats of what comes as it
                comes.
        """
        manifest = self.manifest("train")
        check_batch_fits(self.global_batch_size, manifest.num_samples, manifest.root)
        if self.splits.is_sequential:
            check_no_repeats(self.repeats, manifest.root)
        return build_order(
            manifest.shard_sizes,
            repeats=self.repeats,
            global_batch_size=self.global_batch_size,
            seed=self.seed,
            # Of a sequential source, ids are running numbers: its readers do the shuffling.
            shuffle="none" if self.splits.is_sequential else self.shuffle,
            window=self.window,
            partitions=1 if self.splits.is_sequential else self.partitions,
        )

    def size_at(self, epoch: int) -> int:
        """Return the side of an epoch's training images in pixels; epochs count from 0."""
        return self.train_sizes.at(epoch)

    @property
    def image_sizes(self) -> tuple[int, ...]:
        """All sides of images that a network must take, of training and evaluation, ascending."""
        return tuple(sorted({*self.train_sizes.all, self.eval_crop.size}))

    def plan(self, world_size: int) -> BatchPlan:
        """Return micro-batch and accumulation for so many ranks."""
        return plan_batches(self.global_batch_size, self.micro_batch_size, world_size)

    def steps_per_epoch(self) -> int:
        """Return the optimizer steps that training takes of each epoch."""
        limit = self.trainer.limit_train_batches if self.trainer is not None else None
        accumulate = self.plan(place_of(self.trainer).world_size).accumulate
        return steps_of_limited_epoch(self.order().num_steps, accumulate, limit)

    def check(self, splits: tuple[str, ...], num_classes: int, world_size: int) -> None:
        """Find everything that is wrong with the data before a process or a GPU is taken.

        Raises:
            UserInputError: the first fault found.
        """
        choose_decoder(self.decoder)
        self._workers()
        self._num_classes = num_classes
        for split in splits:
            if split == "predict":
                self.samples("predict")
            else:
                self.manifest(split).check_labels(num_classes)
        if "train" in splits:
            self.plan(world_size)
            self.order()

    def setup(self, stage: str) -> None:
        """Tell the trainer how many micro-batches make up an optimizer step.

        Raises:
            UserInputError: the trainer was given a number of its own.
        """
        if stage != "fit" or self.trainer is None:
            return
        derived = self.plan(self.trainer.world_size).accumulate
        check_accumulation(self.trainer.accumulate_grad_batches, derived)
        self.trainer.accumulate_grad_batches = derived

    def train_dataloader(self) -> TrainLoader:
        """Build this rank's training loader; it begins behind `samples_seen`."""
        loaders, kept = self._loaders(), 0
        plan = self.plan(loaders.place.world_size)
        if self.locations["val"] is not None:
            val = self.splits.shard_samples("val", loaders.workers)
            kept = self.caching.kept_bytes(val, loaders.place)
        # Not `self.size_at`: a loader in a cycle is collected late, and its readers stay so long.
        size_at = self.train_sizes.at
        steps = TrainSteps(self.order(), plan, self.steps_per_epoch(), self.samples_seen, size_at)
        self._train_loader = loaders.train(
            self.samples("train"), self.train_crop, self.flip, steps, kept
        )
        return self._train_loader

    def val_dataloader(self) -> EvaluationLoader | list[EvaluationLoader]:
        """Build this rank's validation loader; without validation shards there is none."""
        if self.locations["val"] is None:
            return []
        return self._evaluation_loader("val")

    def test_dataloader(self) -> EvaluationLoader:
        """Build this rank's test loader."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> EvaluationLoader:
        """Build this rank's prediction loader."""
        return self._evaluation_loader("predict")

    @property
    def wait_s(self) -> float:
        """Seconds that training has waited for batches so far."""
        return self._train_loader.wait_s if self._train_loader is not None else 0.0

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move what the model needs; ids stay on the host, where they are counted and logged."""
        moved = batch.copy()
        for name in ("image", "label", "flip"):
            moved[name] = batch[name].to(device, non_blocking=True)
        return moved

    def teardown(self, stage: str) -> None:
        """Let go of the cache: nothing is needed any more."""
        self.caching.close()

    def _loaders(self) -> RankLoaders:
        return RankLoaders(
            self.caching,
            place_of(self.trainer),
            self._workers(),
            self.build_decoder(),
            self.channels,
            self.seed,
            self.before_wait,
        )

    def _evaluation_loader(self, split: str) -> EvaluationLoader:
        loaders = self._loaders()
        size = self.eval_batch_size or self.plan(loaders.place.world_size).micro_batch_size
        return loaders.evaluation(self.samples(split), self.eval_crop, size)

    def _workers(self) -> WorkerOptions:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        local_ranks = self.trainer.num_devices if self.trainer is not None else 1
        workers = readers_per_rank(self.num_workers, self.cpus_per_rank, local_ranks)
        return self.worker_options(workers, on_gpu=on_gpu)
