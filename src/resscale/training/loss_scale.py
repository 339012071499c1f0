"""The loss scale of float16: who keeps it, what it is, how many steps it has cost.

float16 holds nothing below 6e-8, so the loss is scaled up before the backward pass and gradients
are scaled down behind it; where they overflow, the step is skipped and the scale halved
(Micikevicius et al. 2018, section 3.2).
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

INIT_SCALE = 2.0**16
# Steps without an overflow behind which the scale is doubled, as torch's own scaler has it.
GROWTH_INTERVAL = 2000


class LossScale:
    """torch's rule for the loss scale, in the form in which a ZeRO optimizer asks for it.

    DeepSpeed 0.19.8 uses a torch scaler under autocast, which unscales behind the clipping and
    updates once per group of parameters; its own dynamic scaler doubles a step later than torch's.

    Attributes:
        cur_scale: what the loss is multiplied by.
        good_steps: steps without an overflow since the scale last changed.
    """

    dynamic = True

    def __init__(self) -> None:
        self.cur_scale = INIT_SCALE
        self.good_steps = 0

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by."""
        return self.cur_scale

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Return the loss, scaled."""
        return loss * self.cur_scale

    def update_scale(self, overflow: bool) -> None:
        """Halve the scale behind an overflow, double it behind enough steps without one."""
        if overflow:
            self.cur_scale, self.good_steps = self.cur_scale / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == GROWTH_INTERVAL:
            self.cur_scale, self.good_steps = self.cur_scale * 2, 0


def install_loss_scaler(zero_optimizer: Any) -> None:
    """Give a ZeRO optimizer that trains under autocast a loss scale that acts like torch's."""
    zero_optimizer.torch_autocast_gradscaler = None
    zero_optimizer.loss_scaler = LossScale()
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
        return {"scale": float(zero.cur_scale), "good_steps": float(zero.good_steps)}
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
        zero.cur_scale, zero.good_steps = saved["scale"], int(saved["good_steps"])
        return
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None:
        state = scaler.state_dict()
        state.update(scale=saved["scale"], _growth_tracker=int(saved["good_steps"]))
        scaler.load_state_dict(state)


def _zero_scaler(trainer: Trainer) -> LossScale | None:
    optimizer = getattr(trainer.strategy.model, "optimizer", None)
    scaler = getattr(optimizer, "loss_scaler", None)
    return scaler if isinstance(scaler, LossScale) else None
