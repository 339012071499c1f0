"""resscale: ResNets at scale.

The names below are loaded on first use, so `import resscale` and `resscale --help` stay fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resscale.models import create_model, list_models
    from resscale.training.classifier import ImageClassifier

__version__ = "0.1.0"
__all__ = ["ImageClassifier", "__version__", "create_model", "list_models"]

_HOMES = {
    "create_model": "resscale.models",
    "list_models": "resscale.models",
    "ImageClassifier": "resscale.training.classifier",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'resscale' has no attribute {name!r}")
