"""`--profile`: a trace of a few steps for a viewer, and a short table of what costs most.

torch's profiler does the work. Without the option the callback is not there, and nothing is
measured or slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, schedule

from resscale.errors import UserInputError
from resscale.training.position import Position
from resscale.training.rundir import RunDir

_ROWS = 15
# The profiler's own first steps are slow: they are recorded and thrown away.
_WARM_UP_STEPS = 2
_NAME_WIDTH = 44


@dataclass(frozen=True)
class ProfileConfig:
    """What is recorded.

    Args:
        steps: optimizer steps.
        after: steps of this process before them, in which it reads, compiles and chooses kernels.
        ranks: "first" records rank 0, "all" each rank in files of its own.
        shapes: keep the shapes of each operation's tensors; files grow, and steps slow down.

    Raises:
        UserInputError: a value outside its range.
    """

    steps: int = 5
    after: int = 10
    ranks: Literal["first", "all"] = "first"
    shapes: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserInputError(f"profile.steps={self.steps} must be at least 1.")
        if self.after < 0:
            raise UserInputError(f"profile.after={self.after} must be 0 or more.")


@dataclass(frozen=True)
class Cost:
    """An operation, or a kernel, added up over the recorded steps.

    Args:
        name: of the profiler.
        calls: how often.
        cpu_ms: of the CPU in itself, without what it calls.
        device_ms: of the GPU, where this is a kernel.
    """

    name: str
    calls: int
    cpu_ms: float
    device_ms: float


def profile_config(asked: bool | ProfileConfig) -> ProfileConfig | None:
    """Return what `--profile` asks for: `true`, or its own options; None: nothing.

    Args:
        asked: as parsed.
    """
    if isinstance(asked, ProfileConfig):
        return asked
    return ProfileConfig() if asked else None


def top_costs(costs: Iterable[Cost], steps: int, rows: int = _ROWS) -> str:
    """Return a table of the highest costs in 80 columns: by GPU time where there is some.

    Args:
        costs: of `steps` steps.
        steps: how many were recorded.
        rows: how many costs to tell.
    """
    found = list(costs)
    on_device = any(cost.device_ms > 0 for cost in found)
    kind = "GPU" if on_device else "CPU"

    def own_ms(cost: Cost) -> float:
        return cost.device_ms if on_device else cost.cpu_ms

    total = sum(map(own_ms, found)) or 1.0
    found.sort(key=own_ms, reverse=True)
    head = f"{'operation':<{_NAME_WIDTH}} {'calls/step':>10} {kind + ' ms/step':>12} {'share':>6}"
    lines = [head]
    for cost in found[:rows]:
        lines.append(
            f"{_shorten(cost.name):<{_NAME_WIDTH}} {cost.calls / steps:>10.1f} "
            f"{own_ms(cost) / steps:>12.3f} {own_ms(cost) / total:>6.1%}"
        )
    rest = sum(map(own_ms, found[rows:]))
    lines.append(
        f"{'all others':<{_NAME_WIDTH}} {'':>10} {rest / steps:>12.3f} {rest / total:>6.1%}"
    )
    return "\n".join(lines)


class StepProfiler(Callback):
    """Records some optimizer steps into `<run_dir>/profile/`.

    Args:
        config: which steps, and of which ranks.
    """

    def __init__(self, config: ProfileConfig) -> None:
        self.config = config
        self._profiler: Any = None
        self._first_step = 0
        self._recorded = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make ready; the first recorded step is some way off."""
        if self.config.ranks == "first" and not trainer.is_global_zero:
            return
        activities = [ProfilerActivity.CPU]
        if trainer.strategy.root_device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        warm_up = min(_WARM_UP_STEPS, self.config.after)
        self._first_step, self._recorded = trainer.global_step + self.config.after, 0
        self._profiler = profile(
            activities=activities,
            record_shapes=self.config.shapes,
            schedule=schedule(
                wait=self.config.after - warm_up,
                warmup=warm_up,
                active=self.config.steps,
                repeat=1,
            ),
            # There is one cycle, of which nothing is lost; without this torch warns that it is.
            acc_events=True,
        )
        self._profiler.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count optimizer steps; write where the last one to be recorded has ended."""
        if self._profiler is None or not Position.of(trainer).is_step_boundary:
            return
        self._recorded = max(0, trainer.global_step - self._first_step)
        if self._recorded >= self.config.steps:
            self._write(trainer)
        else:
            self._profiler.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what there is of a training that ends too early, or say that there is nothing."""
        if self._profiler is None:
            return
        if self._recorded > 0:
            self._write(trainer)
            return
        self._stop()
        if trainer.is_global_zero:
            print(
                f"--profile: training ended before its step {self._first_step + 1}, the first to "
                f"be recorded; lower profile.after.",
                flush=True,
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop recording."""
        self._stop()

    def _stop(self) -> Any:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
        return profiler

    def _write(self, trainer: Trainer) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            # Kernels of the recorded steps may still be running.
            torch.cuda.synchronize(device)
        profiler = self._stop()
        folder = RunDir(trainer.default_root_dir).path / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"rank-{trainer.global_rank}-step-{self._first_step + 1}"
        trace = folder / f"{name}.trace.json.gz"
        profiler.export_chrome_trace(str(trace))
        table = top_costs(costs_of(profiler.key_averages()), self._recorded)
        (folder / f"{name}.txt").write_text(table + "\n")
        if trainer.is_global_zero:
            first, last = self._first_step + 1, self._first_step + self._recorded
            print(f"profile of steps {first} to {last}: {trace}\n{table}", flush=True)


def costs_of(averages: Iterable[Any]) -> Sequence[Cost]:
    """Return the costs of the profiler's averages, without the marks of whole steps.

    A GPU's time is that of its kernels: the operations that launched them, and the marks that lie
    around them, have it a second time.

    Args:
        averages: of `torch.profiler.profile.key_averages()`.
    """
    return [
        Cost(
            event.key,
            event.count,
            event.self_cpu_time_total / 1000,
            event.self_device_time_total / 1000 if _is_kernel(event) else 0.0,
        )
        for event in averages
        if not event.key.startswith("ProfilerStep")
    ]


def _is_kernel(event: Any) -> bool:
    is_mark = getattr(event, "is_user_annotation", False)
    return event.device_type.name != "CPU" and not is_mark


def _shorten(name: str) -> str:
    """Return a name in the table's width: kernels of GPUs have long ones."""
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 3] + "..."
