"""resscale's loader: `python ours_loader.py SHARDS --decoder native --kind threads --workers 1`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

import torch
from serve import serve

from resscale.data import EpochOrder, Manifest, ShardDataset
from resscale.data.augment import RandomResizedCrop
from resscale.data.batching import plan_batches
from resscale.data.dataset import Batch
from resscale.data.decoders import build_decoder
from resscale.data.loader import TrainLoader, WorkerOptions


def build_loader(options: argparse.Namespace) -> TrainLoader:
    """Return the loader that training has, of an order over all samples."""
    manifest = Manifest.load(options.shards)
    batch = options.batch_size
    dataset = ShardDataset(
        manifest,
        RandomResizedCrop(options.size),
        build_decoder(options.decoder),
        flip=True,
        replace_bad=True,
    )
    return TrainLoader(
        dataset,
        EpochOrder(manifest.shard_sizes, global_batch_size=batch),
        plan_batches(batch, batch, 1),
        rank=0,
        options=WorkerOptions(options.workers, options.start_method, kind=options.kind),
    )


def flip_on_cpu(batch: Batch) -> torch.Tensor:
    """Mirror the rows that are marked; in training the device does that."""
    image = batch["image"]
    for row in batch["flip"].nonzero().flatten().tolist():
        image[row] = image[row].flip(-1)
    return image


def epochs(loader: TrainLoader, flip: bool) -> Iterator[int]:
    """Yield the number of images of one epoch after the other."""
    while True:
        images = 0
        for batch in loader:
            image = flip_on_cpu(batch) if flip else batch["image"]
            assert image.dtype == torch.uint8
            images += len(image)
        loader.samples_seen += images
        yield images


def main() -> None:
    """Read the command line and serve epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shards")
    parser.add_argument("--decoder", default="native")
    parser.add_argument("--kind", choices=("threads", "processes"), default="threads")
    parser.add_argument("--start_method", default="forkserver")
    parser.add_argument("--workers", type=int, default=1, help="0: in the main thread")
    parser.add_argument("--flip", action="store_true", help="on the CPU, not on the device")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    running: Any = epochs(build_loader(options), options.flip)
    serve(lambda: next(running), ("resscale", "torch", "numpy", "pillow"))


if __name__ == "__main__":
    main()
