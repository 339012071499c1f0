"""The loss scale of float16: who keeps it, what it is, how many steps it has cost.

float16 holds nothing below 6e-8, so the loss is scaled up before the backward pass and gradients
are scaled down behind it; where they overflow, the step is skipped and the scale halved
(Micikevicius et al. 2018, section 3.2).
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer

INIT_SCALE = 2.0**16
# Steps without an overflow behind which the scale is doubled, as torch's own scaler has it.
GROWTH_INTERVAL = 2000


def install_loss_scaler(zero_optimizer: Any) -> None:
    """Give a ZeRO optimizer that trains under autocast a loss scale that acts like torch's.

    DeepSpeed 0.19.8 uses a torch scaler here, which unscales behind the clipping and updates once
    per group of parameters; its own dynamic scaler does both right.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    zero_optimizer.torch_autocast_gradscaler = None
    zero_optimizer.loss_scaler = DynamicLossScaler(
        init_scale=INIT_SCALE,
        scale_window=GROWTH_INTERVAL,
        min_scale=1.0,
        delayed_shift=1,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=False,
        # Not torch.half, by which it would log each overflow on rank 0; they are counted.
        dtype=torch.float32,
    )
    zero_optimizer.dynamic_loss_scale = True


def skipped_steps(trainer: Trainer) -> int:
    """Return how many optimizer steps overflows have cost in this process's life."""
    engine: Any = trainer.strategy.model
    if hasattr(engine, "skipped_steps"):
        return int(engine.skipped_steps)
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return int(getattr(scaler, "skipped_steps", 0))


def read_loss_scale(trainer: Trainer) -> dict[str, float] | None:
    """Return the scale and the steps since it last changed; None without one."""
    zero = _zero_scaler(trainer)
    if zero is not None:
        good = zero.cur_iter - zero.last_overflow_iter - 1
        return {"scale": float(zero.cur_scale), "good_steps": float(good % GROWTH_INTERVAL)}
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return None
    state = scaler.state_dict()
    if not state:
        return None
    return {"scale": float(state["scale"]), "good_steps": float(state["_growth_tracker"])}


def write_loss_scale(trainer: Trainer, saved: dict[str, float]) -> None:
    """Go on with a scale that `read_loss_scale` returned, under any strategy."""
    zero = _zero_scaler(trainer)
    if zero is not None:
        zero.cur_scale = saved["scale"]
        zero.cur_iter = 0
        zero.last_overflow_iter = -1 - int(saved["good_steps"])
        return
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        state = scaler.state_dict()
        state.update(scale=saved["scale"], _growth_tracker=int(saved["good_steps"]))
        scaler.load_state_dict(state)


def _zero_scaler(trainer: Trainer) -> Any:
    optimizer = getattr(trainer.strategy.model, "optimizer", None)
    scaler = getattr(optimizer, "loss_scaler", None)
    return scaler if getattr(scaler, "dynamic", False) else None
