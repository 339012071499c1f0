"""Blocks of steps of two training loops in turns, so that what disturbs one disturbs both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback

from resscale.bench.peaks import wait_for
from resscale.data.dataset import Batch
from resscale.training.classifier import ImageClassifier
from resscale.training.interval import read_memory_bytes
from resscale.training.optim import build_optimizer
from resscale.training.throughput import Clock, CudaClock, HostClock

PARTS = ("host to device", "forward", "backward", "optimizer")
# A process's first steps compile and choose kernels; then one step says how long one takes.
_COLD_STEPS = 2


class PlainLoop:
    """The training of a classifier without a trainer, each part of a step timed.

    Args:
        module: it is trained, and so spoilt.
        batches: on the host, again and again.
        device: where.
        dtype: of autocast; None: float32.
    """

    def __init__(
        self,
        module: ImageClassifier,
        batches: Sequence[Batch],
        device: torch.device,
        dtype: torch.dtype | None,
    ) -> None:
        self.module = module.to(device).train()
        self.batches = batches
        self.device = device
        self.dtype = dtype
        self.optimizer = build_optimizer(
            module.model, module.optimizer_config, module.global_batch_size
        )
        self._clock: Clock = CudaClock() if device.type == "cuda" else HostClock()
        self._done = 0

    def run(self, steps: int) -> dict[str, float]:
        """Train so many steps; return the mean seconds of each part, and of the whole step."""
        marks = [self._step() for _ in range(steps)]
        wait_for(self.device)
        found = {
            part: sum(self._clock.between_s(mark[n], mark[n + 1]) for mark in marks) / steps
            for n, part in enumerate(PARTS)
        }
        found["step"] = self._clock.between_s(marks[0][0], marks[-1][-1]) / steps
        return found

    @property
    def num_states(self) -> int:
        """Numbers that the optimizer keeps for each weight, once it has made a step."""
        largest = max(self.module.model.parameters(), key=torch.Tensor.numel)
        states = self.optimizer.state[largest].values()
        return sum(
            isinstance(value, torch.Tensor) and value.numel() == largest.numel() for value in states
        )

    def held_bytes(self) -> int:
        """Return what weights, gradients and the optimizer's states take on the device."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        tensors += [p.grad for p in self.module.parameters() if p.grad is not None]
        for state in self.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def _step(self) -> list[Any]:
        marks = [self._clock.mark()]
        batch = self.batches[self._done % len(self.batches)].copy()
        self._done += 1
        for name in ("image", "label", "flip"):
            batch[name] = batch[name].to(self.device, non_blocking=True)
        marks.append(self._clock.mark())
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            loss = self.module.training_step(batch, 0)
        marks.append(self._clock.mark())
        torch.autograd.backward(loss)
        marks.append(self._clock.mark())
        self.optimizer.step()
        # Behind the step, as in the trainer: gradients are not held over the forward pass.
        self.optimizer.zero_grad()
        marks.append(self._clock.mark())
        return marks


@dataclass(frozen=True)
class Round:
    """What a block of each loop took, in seconds per step.

    Args:
        fit_s: the trainer with everything that `resscale fit` has.
        parts_s: of the plain loop, with its whole "step".
    """

    fit_s: float
    parts_s: Mapping[str, float]


class Turns(Callback):
    """Times blocks of steps of a trainer, and runs the plain loop between them.

    Must be the last callback: what all others do at a batch's end is in the block.

    Args:
        make_plain: makes the other loop, once training has begun.
        num_rounds: pairs of blocks; training stops behind them.
        seconds: that a block is to last, in whole steps.
        steps: of a block, in place of `seconds`.

    Attributes:
        plain: the other loop.
        rounds: a pair of blocks each, without the first ones, which compile and choose.
        memory_bytes: the most that training held on a GPU; elsewhere of the process, both loops.
    """

    def __init__(
        self,
        make_plain: Callable[[torch.device], PlainLoop],
        num_rounds: int,
        seconds: float = 3.0,
        steps: int | None = None,
    ) -> None:
        self._make_plain = make_plain
        self.num_rounds = num_rounds
        self.seconds = seconds
        self.steps = steps
        self.rounds: list[Round] = []
        self.memory_bytes = 0
        self.plain: PlainLoop | None = None
        self._since_s = 0.0
        self._cold_blocks = 2
        self._block_steps = _COLD_STEPS
        self._done = 0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the first block."""
        device = trainer.strategy.root_device
        self.plain = self._make_plain(device)
        self._begin(device)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a block of the trainer's and let the plain loop have its turn."""
        self._done += 1
        if self._done < self._block_steps:
            return
        device, plain = trainer.strategy.root_device, self.plain
        assert plain is not None
        wait_for(device)
        fit_s = (time.perf_counter() - self._since_s) / self._done
        held = plain.held_bytes() if device.type == "cuda" else 0
        memory_bytes = read_memory_bytes(device) - held
        parts_s = plain.run(self._done)
        if self._cold_blocks:
            self._cold_blocks -= 1
            fitting = self.steps or max(1, round(self.seconds / fit_s))
            self._block_steps = 1 if self._cold_blocks else fitting
        else:
            self.rounds.append(Round(fit_s, parts_s))
            self.memory_bytes = max(self.memory_bytes, memory_bytes)
            trainer.should_stop = len(self.rounds) >= self.num_rounds
        self._begin(device)

    def _begin(self, device: torch.device) -> None:
        self._done = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._since_s = time.perf_counter()


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the median seconds per step of each part; "framework" is what the trainer adds.

    Args:
        rounds: pairs of blocks; the difference is taken within a pair.
    """
    found = {
        part: statistics.median(one.parts_s[part] for one in rounds) for part in (*PARTS, "step")
    }
    added = statistics.median(one.fit_s - one.parts_s["step"] for one in rounds)
    found["framework"] = added
    found["fit"] = statistics.median(one.fit_s for one in rounds)
    return found
