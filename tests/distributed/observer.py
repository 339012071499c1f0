"""What a run computes in, named by `--trainer.callbacks+=...` of the real command."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, distributed, nn

from resscale.training.loss_scale import read_loss_scale, skipped_steps, write_loss_scale
from resscale.training.partition import local_part
from resscale.training.position import Position


class Observer(Callback):
    """Writes `observed-<rank>.json` into the run directory when training ends.

    Args:
        loss_scale: begin with this scale; None: leave it.
    """

    def __init__(self, loss_scale: float | None = None) -> None:
        self.loss_scale = loss_scale
        self.seen: dict[str, Any] = {"outputs": {}, "gradient_types": set(), "reduced": set()}
        self.seen.update(weights=[], scales=[], skipped=[])
        self._is_backward = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.loss_scale is not None:
            write_loss_scale(trainer, {"scale": self.loss_scale, "good_steps": 0})
        network = pl_module.model
        for name in ("conv1", "bn1", "fc"):
            module = getattr(network, name)
            module.register_forward_hook(self._note_output(name))
        self._note_reduction()
        self._note_step(trainer, pl_module)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Any) -> None:
        self._is_backward = True

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_backward = False
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.seen["gradient_types"] |= {str(gradient.dtype) for gradient in gradients}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        gradient = pl_module.model.fc.weight.grad
        if gradient is not None and "gradient" not in self.seen:
            self.seen["gradient"] = gradient.flatten().tolist()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *arguments: Any
    ) -> None:
        if Position.of(trainer).is_step_boundary:
            self._note_step(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = {name: local_part(p) for name, p in pl_module.named_parameters()}
        norms = [m for m in pl_module.modules() if isinstance(m, nn.BatchNorm2d)]
        self.seen.update(
            parameter_types={str(part.dtype) for part in parts.values()},
            norm_weight_types={str(local_part(m.weight).dtype) for m in norms},
            buffer_types={str(b.dtype) for b in pl_module.buffers() if b.is_floating_point()},
            strategy=type(trainer.strategy).__name__,
            num_graphs=_count_graphs(),
            zero=getattr(trainer.strategy, "config", {}).get("zero_optimization", {}),
        )
        path = Path(trainer.default_root_dir) / f"observed-{trainer.global_rank}.json"
        path.write_text(json.dumps(self.seen, default=sorted))

    def _note_output(self, name: str) -> Any:
        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if module.training:
                self.seen["outputs"][name] = str(output.dtype)

        return note

    def _note_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scale = read_loss_scale(trainer)
        digest = hashlib.sha256()
        for parameter in pl_module.parameters():
            digest.update(local_part(parameter).detach().contiguous().numpy().tobytes())
        self.seen["weights"].append(digest.hexdigest()[:12])
        self.seen["scales"].append(scale and scale["scale"])
        self.seen["skipped"].append(skipped_steps(trainer))

    def _note_reduction(self) -> None:
        """Look on while tensors are reduced during the backward pass."""
        reduce = distributed.all_reduce

        def noting(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            if self._is_backward and torch.is_floating_point(tensor):
                self.seen["reduced"].add(str(tensor.dtype))
            return reduce(tensor, *arguments, **options)

        distributed.all_reduce = noting


def _count_graphs() -> int:
    """Graphs that torch has compiled; 0 where it was never asked to."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo is not None else 0
