"""What each rank holds when a checkpoint is written, named by `--trainer.callbacks+=...`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resscale.training.partition import is_partitioned


class Witness(Callback):
    """Writes `witness-RANK.json` into the run directory at each save; the last one stays."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write this rank's facts; all ranks come here."""
        digest = hashlib.sha256()
        persistent = pl_module.state_dict(keep_vars=True)
        for name, buffer in sorted(pl_module.named_buffers()):
            if name in persistent:
                digest.update(buffer.numpy().tobytes())
        engine = trainer.strategy.deepspeed_engine  # type: ignore[attr-defined]
        parameters = list(pl_module.parameters())
        facts = {
            "buffers": digest.hexdigest(),
            "stage": engine.zero_optimization_stage(),
            "emptied": sum(p.shape == (0,) for p in parameters if is_partitioned(p)),
            "offloads_optimizer": bool(engine.zero_offload_optimizer()),
            "offloads_parameters": bool(engine.zero_offload_param()),
            "macs": pl_module.num_macs(8),  # type: ignore[operator]
            "macs_of_other_images": pl_module.num_macs(16),  # type: ignore[operator]
            "keys": sorted(checkpoint["state_dict"]),
            "finite": all(torch.isfinite(t).all() for t in checkpoint["state_dict"].values()),
        }
        path = Path(trainer.default_root_dir) / f"witness-{trainer.global_rank}.json"
        facts["finite"] = bool(facts["finite"])
        path.write_text(json.dumps(facts))
