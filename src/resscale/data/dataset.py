"""Batches of decoded samples: reading, cropping, and replacing what is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from resscale.data.augment import CenterCrop, Crop
from resscale.data.decode import DecodeError, Decoder, PillowDecoder, Pixels
from resscale.data.manifest import Manifest
from resscale.data.permutation import Int64, hash_uint64, mix_key, uniforms
from resscale.data.samples import Samples, ShardSamples
from resscale.data.shard_index import NO_LABEL
from resscale.errors import DataFormatError

IGNORED = NO_LABEL  # a row that no loss or metric counts
_CROP, _FLIP = 11, 12


@dataclass(frozen=True)
class BatchRequest:
    """One micro-batch to be read: which samples, and what their augmentation is keyed by.

    Args:
        ids: sample ids, int64 (n,).
        epoch: epoch of the augmentation.
        step: step within the epoch.
        size: rows of the batch; rows beyond `ids` are padding.
    """

    ids: Int64
    epoch: int = 0
    step: int = 0
    size: int = 0


class BadSample(NamedTuple):
    """A sample that could not be decoded, and what stood in for it (-1: nothing)."""

    id: int
    key: str
    shard: str
    reason: str
    replaced_by: int


class Batch(TypedDict):
    """A micro-batch.

    image: uint8 (N, C, H, W) in channels_last memory; label: int64 (N,), -1 where not counted;
    flip: bool (N,), rows to mirror on the device; id: int64 (N,), -1 for padding.
    """

    image: torch.Tensor
    label: torch.Tensor
    flip: torch.Tensor
    id: torch.Tensor
    epoch: int
    step: int
    bad: list[BadSample]


class Sample(TypedDict):
    """One sample: its key, uint8 image (C, H, W), and label (-1 where it has none)."""

    id: int
    key: str
    image: torch.Tensor
    label: int


class ShardDataset(Dataset[Batch | Sample]):
    """Samples as uint8 crops: `dataset[id]` is one, `dataset[request]` a batch.

    Everything random is a function of (seed, epoch, sample id): the same for any number of ranks
    and workers, and after any restart.

    Args:
        samples: the manifest of the shards to read, or any other `Samples`.
        crop: the region of each image; the centre at 224 of 256 pixels by default.
        decoder: Pillow by default.
        channels: 3 for RGB, 1 for grey.
        seed: key of the augmentation.
        flip: half of the samples are marked to be mirrored.
        replace_bad: a damaged sample is replaced by another of its micro-batch (training); else
            its row stays black and its label is -1 (evaluation).
    """

    def __init__(
        self,
        samples: Manifest | Samples,
        crop: Crop | None = None,
        decoder: Decoder | None = None,
        *,
        channels: int = 3,
        seed: int = 0,
        flip: bool = False,
        replace_bad: bool = False,
    ) -> None:
        self.samples = ShardSamples(samples) if isinstance(samples, Manifest) else samples
        self.crop: Crop = crop or CenterCrop(224, 256)
        self.decoder: Decoder = decoder or PillowDecoder(channels)
        self.channels = channels
        self.seed = seed
        self.flip = flip
        self.replace_bad = replace_bad

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int | BatchRequest) -> Batch | Sample:
        if isinstance(item, BatchRequest):
            return self.read_batch(item)
        batch = self.read_batch(BatchRequest(np.array([item])))
        if batch["bad"]:
            raise DataFormatError(f"sample {batch['bad'][0].key}: {batch['bad'][0].reason}")
        return Sample(
            id=item,
            key=self.samples.key(item),
            image=batch["image"][0],
            label=int(batch["label"][0]),
        )

    def read_batch(self, request: BatchRequest) -> Batch:
        """Read and decode a micro-batch.

        Raises:
            DataFormatError: the shard itself is damaged, or no sample of the batch can be decoded.
        """
        ids, rows = request.ids, max(request.size, len(request.ids))
        side = self.crop.size
        pixels = np.zeros((rows, side, side, self.channels), dtype=np.uint8)
        labels = np.full(rows, IGNORED, dtype=np.int64)
        shown = np.full(rows, -1, dtype=np.int64)
        shown[: len(ids)] = ids
        crop_key = mix_key(self.seed, _CROP, request.epoch)
        uniform = uniforms(ids, self.crop.num_uniforms, crop_key)
        failures: dict[int, str] = {}
        for row, sample in enumerate(ids.tolist()):
            data, label = self.samples.read(sample)
            try:
                self.decoder.decode(data, self.crop, uniform[row], pixels[row])
                labels[row] = label
            except DecodeError as error:
                failures[row] = str(error)
        bad = self._replace(ids, failures, pixels, labels)
        flip_key = mix_key(self.seed, _FLIP, request.epoch)
        flips = (hash_uint64(shown.astype(np.uint64), flip_key) >> np.uint64(63)).astype(bool)
        return Batch(
            image=torch.from_numpy(pixels).permute(0, 3, 1, 2),
            label=torch.from_numpy(labels),
            flip=torch.from_numpy(flips & self.flip),
            id=torch.from_numpy(shown),
            epoch=request.epoch,
            step=request.step,
            bad=bad,
        )

    def _replace(
        self, ids: Int64, failures: dict[int, str], pixels: Pixels, labels: Int64
    ) -> list[BadSample]:
        """Fill the rows that failed from good rows of the same micro-batch; return the list."""
        good = [row for row in range(len(ids)) if row not in failures]
        if failures and not good and self.replace_bad:
            first = int(ids[0])
            raise DataFormatError(
                f"none of the {len(ids)} samples of a micro-batch can be decoded, "
                f"{self.samples.key(first)} for one ({failures[0]}). Look at the data with: "
                f"resscale inspect {self.samples.origin(first).rpartition('/')[0]}"
            )
        bad = []
        for number, (row, reason) in enumerate(failures.items()):
            sample, source = int(ids[row]), -1
            pixels[row] = 0
            if self.replace_bad:
                donor = good[number % len(good)]
                pixels[row], labels[row] = pixels[donor], labels[donor]
                source = int(ids[donor])
            origin = self.samples.origin(sample).rpartition("/")[2]
            bad.append(BadSample(sample, self.samples.key(sample), origin, reason, source))
        return bad
