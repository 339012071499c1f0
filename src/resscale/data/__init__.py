"""Data: manifest → order → decode → batch.

The names below are loaded on first use: packing needs no torch, training does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resscale.data.datamodule import ShardDataModule
    from resscale.data.dataset import ShardDataset
    from resscale.data.manifest import Manifest
    from resscale.data.order import EpochOrder

__all__ = ["EpochOrder", "Manifest", "ShardDataModule", "ShardDataset"]

_HOMES = {
    "EpochOrder": "resscale.data.order",
    "Manifest": "resscale.data.manifest",
    "ShardDataModule": "resscale.data.datamodule",
    "ShardDataset": "resscale.data.dataset",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'resscale.data' has no attribute {name!r}")
