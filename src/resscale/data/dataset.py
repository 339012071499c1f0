"""Batches of decoded samples: reading, cropping, and replacing what is damaged."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch.utils.data import Dataset

from resscale.data.augment import CenterCrop, Crop
from resscale.data.buffers import PixelBuffers
from resscale.data.decode import DecodeError, Decoder
from resscale.data.decode_pillow import PillowDecoder
from resscale.data.locations import name_of, parent, shown
from resscale.data.manifest import Manifest
from resscale.data.permutation import Int64, hash_uint64, mix_key, uniforms
from resscale.data.repeats import augment_ids
from resscale.data.samples import Samples, ShardSamples, read_each
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
        copies: which of its sample's repeats each row is, int64 (n,); None: 0 for all.
        side: of the images in pixels; 0: that of the dataset's crop.
    """

    ids: Int64
    epoch: int = 0
    step: int = 0
    size: int = 0
    copies: Int64 | None = None
    side: int = 0


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
    flip: bool (N,), rows to mirror on the device; id: int64 (N,), -1 for padding; copy: int64 (N,),
    which of its sample's repeats a row is, 0 without repeats. Draws per row are keyed by
    `augment_ids(id, copy)`; both stay on the host.
    """

    image: torch.Tensor
    label: torch.Tensor
    flip: torch.Tensor
    id: torch.Tensor
    copy: torch.Tensor
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
        batch = self.open_batch(request)
        batch.read(0, len(request.ids))
        return batch.close()

    def open_batch(self, request: BatchRequest, buffers: PixelBuffers | None = None) -> OpenBatch:
        """Return a micro-batch whose rows are to be read.

        Args:
            request: which samples.
            buffers: lend the memory; None: fresh memory.
        """
        return OpenBatch(self, request, buffers)


class OpenBatch:
    """A micro-batch that is being read; several threads may read different rows of it.

    Args:
        dataset: whose samples.
        request: which of them.
        buffers: lend the memory; None: fresh memory.
    """

    def __init__(
        self, dataset: ShardDataset, request: BatchRequest, buffers: PixelBuffers | None = None
    ) -> None:
        self._dataset = dataset
        self._request = request
        ids, crop = request.ids, dataset.crop
        if request.side not in (0, crop.size):
            crop = crop.at_size(request.side)
        self._crop = crop
        rows = max(request.size, len(ids))
        if buffers is None:
            self._pixels = np.zeros((rows, crop.size, crop.size, dataset.channels), dtype=np.uint8)
        else:
            self._pixels = buffers.take(rows, crop.size, dataset.channels)
            self._pixels[len(ids) :] = 0
        self._labels = np.full(rows, IGNORED, dtype=np.int64)
        self._copies = np.zeros(rows, dtype=np.int64)
        if request.copies is not None:
            self._copies[: len(ids)] = request.copies
        crop_key = mix_key(dataset.seed, _CROP, request.epoch)
        keyed = augment_ids(ids, self._copies[: len(ids)])
        self._uniform = uniforms(keyed, crop.num_uniforms, crop_key)
        self._failures: dict[int, str] = {}

    def read(self, start: int, stop: int) -> None:
        """Read and decode rows `start` to `stop`; damaged images are noted.

        Raises:
            DataFormatError: the shard itself is damaged.
        """
        samples, decoder, crop = self._dataset.samples, self._dataset.decoder, self._crop
        ids = self._request.ids[start:stop].tolist()
        for row, (data, label) in enumerate(read_each(samples, ids), start):
            try:
                decoder.decode(data, crop, self._uniform[row], self._pixels[row])
                self._labels[row] = label
            except DecodeError as error:
                self._failures[row] = str(error)

    def close(self) -> Batch:
        """Replace what is damaged and return the batch, once all rows have been read.

        Raises:
            DataFormatError: no sample of the batch can be decoded.
        """
        request, dataset = self._request, self._dataset
        bad = self._replace()
        shown = np.full(len(self._labels), -1, dtype=np.int64)
        shown[: len(request.ids)] = request.ids
        flip_key = mix_key(dataset.seed, _FLIP, request.epoch)
        keyed = augment_ids(shown, self._copies).astype(np.uint64)
        flips = (hash_uint64(keyed, flip_key) >> np.uint64(63)).astype(bool)
        return Batch(
            image=torch.from_numpy(self._pixels).permute(0, 3, 1, 2),
            label=torch.from_numpy(self._labels),
            flip=torch.from_numpy(flips & dataset.flip),
            id=torch.from_numpy(shown),
            copy=torch.from_numpy(self._copies),
            epoch=request.epoch,
            step=request.step,
            bad=bad,
        )

    def _replace(self) -> list[BadSample]:
        """Fill the rows that failed from good rows of the same micro-batch; return the list."""
        ids, samples, failures = self._request.ids, self._dataset.samples, self._failures
        replace = self._dataset.replace_bad
        good = [row for row in range(len(ids)) if row not in failures]
        if failures and not good and replace:
            first = int(ids[0])
            raise DataFormatError(
                f"none of the {len(ids)} samples of a micro-batch can be decoded, "
                f"{samples.key(first)} for one ({failures[0]}). Look at the data with: "
                f"resscale inspect {shlex.quote(shown(parent(samples.origin(first))))}"
            )
        bad = []
        # Threads may have noted them in any order; what stands in for them must not depend on it.
        for number, (row, reason) in enumerate(sorted(failures.items())):
            sample, source = int(ids[row]), -1
            self._pixels[row] = 0
            if replace:
                donor = good[number % len(good)]
                self._pixels[row], self._labels[row] = self._pixels[donor], self._labels[donor]
                source = int(ids[donor])
            # The name alone: behind it an address may carry a signature.
            origin = name_of(samples.origin(sample))
            bad.append(BadSample(sample, samples.key(sample), origin, reason, source))
        return bad
