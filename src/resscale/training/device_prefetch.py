"""The next batch is copied to the GPU while it trains on this one, in a stream of its own.

In the stream of the kernels a copy stands between two steps: 39 MB of uint8 pixels, 256 images of
224 × 224, take about a millisecond of PCIe. Beside the kernels they cost nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resscale.data.dataset import Batch
from resscale.data.loader import TrainLoader

Transfer = Callable[[Batch], Batch]


class Sender(Protocol):
    """Sends a batch on its way, and takes it when it is wanted."""

    def send(self, batch: Batch) -> Any:
        """Begin to copy; return what `take` needs."""
        ...

    def take(self, sent: Any) -> Batch:
        """Return the batch on the device."""
        ...


class _Sent(NamedTuple):
    batch: Batch
    copied: torch.cuda.Event


class StreamSender:
    """Copies in a side stream; kernels of the current stream wait for the copy, the host does not.

    Args:
        transfer: moves a batch to the device by copies that do not block: out of page-locked
            memory, which torch keeps until they have ended.
        device: a GPU.
    """

    def __init__(self, transfer: Transfer, device: torch.device) -> None:
        self.transfer = transfer
        self.device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def send(self, batch: Batch) -> _Sent:
        """Begin to copy."""
        with torch.cuda.stream(self._stream):
            moved = self.transfer(batch)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        return _Sent(moved, copied)

    def take(self, sent: _Sent) -> Batch:
        """Return the batch; what is done with it from here on comes behind its copy."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(sent.copied)
        for value in sent.batch.values():
            if isinstance(value, torch.Tensor) and value.is_cuda:
                # The memory is the side stream's: it may have it back behind these kernels only.
                value.record_stream(current)
        return sent.batch


def transfer_of(data: Any, device: torch.device) -> Transfer:
    """Return how a data module moves a batch, without keeping the data module.

    It has the loader, which keeps what is returned here: a cycle, and a loader in a cycle cannot
    end its readers when it is collected.

    Args:
        data: a data module.
        device: where batches go.
    """
    weakly = weakref.proxy(data)
    return lambda batch: cast(Batch, weakly.transfer_batch_to_device(batch, device, 0))


def send_ahead(batches: Iterator[Batch], sender: Sender) -> Iterator[Batch]:
    """Yield batches, the next of which is always under way.

    An error that a batch was to be is raised where the batch would have come, not one before.

    Args:
        batches: on the host.
        sender: of the device.
    """

    def following() -> Any:
        try:
            return sender.send(next(batches))
        except Exception as error:  # StopIteration among them
            return error

    under_way = following()
    while not isinstance(under_way, Exception):
        here, under_way = under_way, following()
        yield sender.take(here)
    if not isinstance(under_way, StopIteration):
        raise under_way


class DevicePrefetch(Callback):
    """Lets a training loader's batches be copied ahead of use; without a GPU it does nothing."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take hold of the loader before its first batch is asked for."""
        device, loader = trainer.strategy.root_device, trainer.train_dataloader
        if device.type != "cuda" or not isinstance(loader, TrainLoader):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set at run time
        sender = StreamSender(transfer_of(data, device), device)
        loader.through = lambda batches: send_ahead(batches, sender)
