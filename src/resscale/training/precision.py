"""Mixed precision by autocast under every strategy: weights, BatchNorm and buffers stay float32.

Lightning's DeepSpeed strategy casts the whole module in place of that, BatchNorm included; and on a
CPU Lightning replaces float16 by bfloat16. Ours does neither.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.plugins import DeepSpeedPrecision, MixedPrecision, Precision
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from resscale.errors import UserInputError, nearest

PrecisionName = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: tuple[PrecisionName, ...] = ("32-true", "bf16-mixed", "16-mixed")

# Names that Lightning takes for the same.
_OTHER_NAMES = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


class CountingGradScaler(torch.amp.GradScaler):
    """torch's gradient scaler, which says how many optimizer steps it has skipped.

    Attributes:
        skipped_steps: optimizer steps skipped since the start of this process.
    """

    skipped_steps = 0

    def _maybe_opt_step(
        self, optimizer: Optimizer, optimizer_state: dict[str, Any], *args: Any, **kwargs: Any
    ) -> float | None:
        # torch, too, reads these flags here: one wait a step is the price of float16.
        if any(float(flag) for flag in optimizer_state["found_inf_per_device"].values()):
            self.skipped_steps += 1
            return None
        stepped: float | None = optimizer.step(*args, **kwargs)
        return stepped


class ZeroPrecision(DeepSpeedPrecision):
    """What a DeepSpeed engine needs for autocast: inputs and weights are left as they are."""

    def __init__(self, precision: PrecisionName, device: str) -> None:
        super().__init__(precision)
        self.device = device

    def convert_module(self, module: Module) -> Module:
        """Return the module as it is: float32."""
        return module

    def convert_input(self, data: Any) -> Any:
        """Return the batch as it is."""
        return data

    def backward(self, tensor: Tensor, model: Any, *args: Any, **kwargs: Any) -> None:
        """Let the engine compute gradients.

        Lightning has divided the loss by the micro-batches of a step already; the engine would
        divide it again, and take steps too small by that factor.
        """
        super().backward(tensor, model, *args, scale_wrt_gas=False, **kwargs)

    @contextmanager
    def forward_context(self) -> Generator[None, None, None]:
        """Autocast, in evaluation without an engine too."""
        dtype = autocast_dtype(self.precision)
        if dtype is None:
            yield
            return
        with torch.autocast(self.device, dtype=dtype, cache_enabled=False):
            yield


def precision_name(value: str | int | None) -> PrecisionName:
    """Return one of `PRECISIONS` for what a user may write.

    Raises:
        UserInputError: another precision.
    """
    name = _OTHER_NAMES.get(str(value), str(value)) if value is not None else "32-true"
    if name not in PRECISIONS:
        why = (
            ": it would cast BatchNorm too, whose statistics then lose what small updates add up to"
            if name in ("16-true", "bf16-true")
            else ""
        )
        raise UserInputError(
            f"trainer.precision={value} is not supported{why}; choose one of "
            f"{', '.join(PRECISIONS)}.{nearest(name, PRECISIONS)}"
        )
    return name


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return the type that convolutions compute in; None: float32, without autocast."""
    return {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)


def build_precision(name: PrecisionName, device: str, *, deepspeed: bool) -> Precision:
    """Build the plugin that the trainer is given.

    Args:
        name: of the precision.
        device: "cuda" or "cpu".
        deepspeed: a DeepSpeed engine trains.
    """
    if deepspeed:
        return ZeroPrecision(name, device)
    if name == "32-true":
        return Precision()
    scaler = CountingGradScaler(device) if name == "16-mixed" else None
    return MixedPrecision(name, device, scaler)
