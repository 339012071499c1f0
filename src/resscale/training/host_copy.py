"""A copy of a checkpoint in host memory, that training may go on beside."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, UntypedStorage

# Bytes, and whether the memory is pinned.
_Kind = tuple[int, bool]


class HostCopier:
    """Copies trees into host memory that it keeps for the next one.

    Fresh memory is handed out by the kernel page by page, which takes several times as long as the
    copying. Storages of a GPU go to pinned memory, all at once, and are waited for together.
    """

    def __init__(self) -> None:
        self._kept: dict[_Kind, list[UntypedStorage]] = {}

    def copy(self, tree: Any) -> Any:
        """Return a deep copy with its tensors in host memory; the copy before it is overwritten.

        Each storage is copied once: tensors that share one share one in the copy too.

        Args:
            tree: dicts, lists, tuples, tensors and plain values.
        """
        spare, self._kept = self._kept, {}
        storages: dict[int, UntypedStorage] = {}
        devices: set[torch.device] = set()
        copies: dict[int, Any] = {}
        for tensor in tensors_of(tree):
            storage = tensor.untyped_storage()
            key = _address(storage)
            if key not in storages:
                storages[key] = self._copy_storage(storage, spare)
                devices.add(storage.device)
            view = torch.empty(0, dtype=tensor.dtype)
            view.set_(storages[key], tensor.storage_offset(), tensor.size(), tensor.stride())
            copies[id(tensor)] = view
        for device in devices:
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
        # What deepcopy finds in its memo it takes as copied; so every kind of container stays.
        return copy.deepcopy(tree, copies)

    def _copy_storage(
        self, storage: UntypedStorage, spare: dict[_Kind, list[UntypedStorage]]
    ) -> UntypedStorage:
        on_gpu = storage.device.type == "cuda"
        kind = (storage.nbytes(), on_gpu)
        found = spare.get(kind)
        if found:
            copied = found.pop()
        else:
            memory = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=on_gpu)
            copied = memory.untyped_storage()
        self._kept.setdefault(kind, []).append(copied)
        copied.copy_(storage, non_blocking=on_gpu)
        return copied


def storage_bytes(tree: Any) -> tuple[int, int]:
    """Return the bytes of all storages in a tree, each counted once, and how many there are."""
    sizes = {}
    for tensor in tensors_of(tree):
        storage = tensor.untyped_storage()
        sizes[_address(storage)] = storage.nbytes()
    return sum(sizes.values()), len(sizes)


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Yield the strided tensors in dicts, lists and tuples."""
    if isinstance(tree, Tensor):
        if tree.layout == torch.strided:
            yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_of(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from tensors_of(value)


def _address(storage: UntypedStorage) -> int:
    """Return what tells storages apart while they live; an empty one has no memory of its own."""
    return storage.data_ptr() or -id(storage)
