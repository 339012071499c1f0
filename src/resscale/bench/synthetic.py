"""Batches of random pixels in the form of the loader's: no disk, no decoding."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from resscale.data.dataset import Batch

# Few enough to stay in memory, several so that no cache holds all of them.
_DISTINCT = 4


class SyntheticLoader:
    """The same few batches, again and again.

    Args:
        batches: uint8 images with labels.
        length: batches per epoch.
    """

    def __init__(self, batches: list[Batch], length: int) -> None:
        self.batches = batches
        self.length = length
        self.wait_s = 0.0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.length):
            batch = self.batches[number % len(self.batches)].copy()
            batch["step"] = number
            yield batch


def synthetic_batches(
    rows: int, size: int, channels: int, num_classes: int, *, pinned: bool = False
) -> list[Batch]:
    """Return a few batches of random pixels and labels, the same in each call.

    Args:
        rows: images of a batch.
        size: pixels per side.
        channels: of an image.
        num_classes: labels are below it.
        pinned: in page-locked memory, as the loader has them for a GPU.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(_DISTINCT):
        shape = (rows, size, size, channels)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        label = torch.randint(0, num_classes, (rows,), generator=generator)
        flip = torch.rand(rows, generator=generator) < 0.5
        if pinned:
            image, label, flip = image.pin_memory(), label.pin_memory(), flip.pin_memory()
        made.append(
            Batch(
                # channels_last memory, as images are decoded
                image=image.permute(0, 3, 1, 2),
                label=label,
                flip=flip,
                id=torch.arange(rows) + number * rows,
                copy=torch.zeros(rows, dtype=torch.int64),
                epoch=0,
                step=number,
                bad=[],
            )
        )
    return made
