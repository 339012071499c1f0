"""What a training step holds in memory beside its states, found from shapes alone.

The net runs on torch's fake tensors: every operation gives the right shape, type and lifetime, and
nothing is allocated. What autograd keeps from forward to backward is counted by storage, and the
peak of a whole step by following each storage from its birth to its end.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Large enough that what grows with the batch hides what does not; on shapes it costs nothing.
_BATCHES = (16, 32)


@dataclass(frozen=True)
class Saved:
    """What autograd keeps from forward to backward, in bytes."""

    per_image: int
    fixed: int
    """Whatever the batch: under autocast the 16-bit copies of the weights."""


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one training step, each storage counted once.

    Args:
        states: weights, buffers, gradients and the optimizer's state, before the step.
        saved: what forward has left behind for backward, the batch included.
        peak: the most that was alive at once, the states included.
    """

    states: int
    saved: int
    peak: int


@dataclass(frozen=True)
class StepMemory:
    """What a step holds beside its states, as a line over the images of a pass."""

    saved: Saved
    work_per_image: int
    """At the peak beside what is saved: maps that are in work."""

    work_fixed: int

    def saved_bytes(self, micro_batch_size: int) -> int:
        """Return what is kept from forward to backward by a pass of so many images."""
        return self.saved.fixed + self.saved.per_image * micro_batch_size

    def work_bytes(self, micro_batch_size: int) -> int:
        """Return what else is alive at the peak of a pass of so many images."""
        return max(0, self.work_fixed + self.work_per_image * micro_batch_size)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that operations make, real or fake.

    `live` are the bytes of those that are alive, `peak` is the most there has been.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and take note of what it has made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf)
        return out

    def note(self, tensor: Tensor) -> None:
        """Count a tensor that is there already; once, however often it is noted."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._sizes:
            return
        self._sizes[storage._cdata] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._end, storage._cdata).atexit = False

    def _end(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def saved_for_backward(
    build: Callable[[], nn.Module], image_size: int, *, dtype: torch.dtype | None, channels: int = 3
) -> Saved:
    """Return what the cross entropy of a net saves, computed without values.

    Parameters and buffers are left out.

    Args:
        build: makes the net; it is called under fake tensors.
        image_size: pixels per side.
        dtype: of autocast, as bfloat16 for `bf16-mixed`; None: all float32.
        channels: of an image.
    """
    with FakeTensorMode():
        # A default is bound where the function is made: without it a net of another mode is met.
        net = build()
        small, large = (_saved_bytes(net, n, image_size, dtype, channels) for n in (2, 4))
    per_image = (large - small) // 2
    return Saved(per_image, small - 2 * per_image)


def _saved_bytes(
    net: nn.Module, batch: int, image_size: int, dtype: torch.dtype | None, channels: int
) -> int:
    own = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers())}
    images = torch.empty(batch, channels, image_size, image_size)
    kept: dict[int, tuple[int, Tensor]] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            # The tensor is kept too: a storage that is gone would give its address to another.
            kept[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(dtype):
        functional.cross_entropy(net(images), torch.zeros(batch, dtype=torch.long))
    return sum(size for size, _ in kept.values())


def autocast(dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Return autocast of the CPU to a type; for None what changes nothing."""
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def simulate_step(
    build: Callable[[], nn.Module],
    micro_batch_size: int,
    image_size: int,
    *,
    dtype: torch.dtype | None,
    channels: int = 3,
    state_values: int = 1,
    gradients_stay: bool = False,
    update_copies: int = 1,
) -> StepBytes:
    """Return what one step holds, computed without values.

    The order is Lightning's: forward, then the gradients of the step before are given up, then
    backward, then the update. So gradients are there at forward's end, where most memory is in use
    but for few or small images; for these it is the update.

    Args:
        build: makes the net; it is called under fake tensors.
        micro_batch_size: images of the pass.
        image_size: pixels per side.
        dtype: of autocast; None: all float32.
        channels: of an image.
        state_values: float32 values that the optimizer keeps per parameter.
        gradients_stay: they lie in DDP's buckets, or are accumulated, and are never given up.
        update_copies: sets of float32 values as large as the weights that the update makes: 1 for
            kernels over lists of tensors ("foreach"), which add the decay to a copy of the
            gradients; 0 for fused ones.
    """
    shape = (micro_batch_size, channels, image_size)
    with FakeTensorMode():
        net = build()
        step = _step(net, LiveBytes(), shape, dtype, state_values, gradients_stay)
        gradients = sum(p.numel() * p.element_size() for p in net.parameters())
    return replace(step, peak=max(step.peak, step.states + update_copies * gradients))


def _step(
    net: nn.Module,
    memory: LiveBytes,
    shape: tuple[int, int, int],
    dtype: torch.dtype | None,
    state_values: int,
    gradients_stay: bool,
) -> StepBytes:
    batch, channels, size = shape
    parameters = list(net.parameters())
    for parameter in parameters:
        parameter.grad = None
    with memory:
        for tensor in (*parameters, *net.buffers()):
            memory.note(tensor)
        state = [torch.zeros_like(p) for p in parameters for _ in range(state_values)]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        states = memory.live
        pixels = torch.zeros(batch, channels, size, size, dtype=torch.uint8)
        labels = torch.zeros(batch, dtype=torch.long)
        loss = _loss(net, pixels, labels, dtype)
        saved = memory.live - states
        if not gradients_stay:
            for parameter in parameters:
                parameter.grad = None
        torch.autograd.backward(loss)
        del state
    return StepBytes(states, saved, memory.peak)


def _loss(net: nn.Module, pixels: Tensor, labels: Tensor, dtype: torch.dtype | None) -> Tensor:
    # As `ImageClassifier` does: float32 pixels, and one multiply and add.
    shift = torch.zeros(pixels.shape[1], 1, 1)
    images = torch.addcmul(shift, pixels.to(torch.float32), shift + 1)
    with autocast(dtype):
        return functional.cross_entropy(net(images), labels)


def step_memory(
    build: Callable[[], nn.Module],
    image_size: int,
    *,
    dtype: torch.dtype | None,
    channels: int = 3,
    gradients_stay: bool = False,
) -> StepMemory:
    """Return what a step of any number of images holds beside its states.

    Args:
        build: makes the net; it is called under fake tensors.
        image_size: pixels per side.
        dtype: of autocast; None: all float32.
        channels: of an image.
        gradients_stay: as for `simulate_step`.
    """
    with FakeTensorMode():
        net = build()
        small, large = (
            _step(net, LiveBytes(), (batch, channels, image_size), dtype, 0, gradients_stay)
            for batch in _BATCHES
        )
    images = _BATCHES[1] - _BATCHES[0]
    saved = (large.saved - small.saved) // images
    works = [step.peak - step.states - step.saved for step in (small, large)]
    work = (works[1] - works[0]) // images
    return StepMemory(
        Saved(saved, small.saved - _BATCHES[0] * saved), work, works[0] - _BATCHES[0] * work
    )
