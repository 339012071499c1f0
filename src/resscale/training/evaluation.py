"""Exact evaluation: every sample once on any number of ranks, and the count asserted."""

from __future__ import annotations

import torch
from torch import Tensor, distributed
from torch.nn import functional
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from resscale.data.dataset import IGNORED
from resscale.errors import ResscaleError


class Evaluation:
    """Accumulates one pass over an evaluation set.

    Accuracy is micro-averaged, so it is the same for any batch size and number of ranks; padding
    rows (label -1) count nowhere.

    Args:
        num_classes: number of classes.
        device: where the logits are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        def accuracy(k: int) -> MulticlassAccuracy:
            return MulticlassAccuracy(
                num_classes,
                top_k=min(k, num_classes),
                average="micro",
                ignore_index=IGNORED,
                validate_args=False,
            ).to(device)

        self.top1, self.top5 = accuracy(1), accuracy(5)
        self.loss = SumMetric().to(device)
        self.scored = SumMetric().to(device)
        self.bad = SumMetric().to(device)
        self._ids: list[Tensor] = []

    def update(self, logits: Tensor, label: Tensor, ids: Tensor, bad: int = 0) -> None:
        """Add a batch: float32 logits (N, C), int64 labels (N,), int64 sample ids (N,) or -1."""
        self.top1.update(logits, label)
        self.top5.update(logits, label)
        self.loss.update(
            functional.cross_entropy(logits, label, ignore_index=IGNORED, reduction="sum")
        )
        self.scored.update((label != IGNORED).sum())
        self.bad.update(bad)
        self._ids.append(ids)

    def compute(self, expected: int | None) -> dict[str, float]:
        """Return loss, top1, top5 (fractions), samples, masked and bad, over all ranks.

        samples: visited, all of them unique; masked: rows of padding; bad: samples that could not
        be decoded. Neither padding nor bad samples are scored.

        Args:
            expected: samples that must have been visited once; None skips the check.

        Raises:
            ResscaleError: a sample was visited twice or not at all.
        """
        rows = _gather(torch.cat(self._ids).to(self.loss.device))
        visited = rows[rows >= 0]
        unique = len(torch.unique(visited))
        if expected is not None and not unique == len(visited) == expected:
            raise ResscaleError(
                f"evaluation visited {len(visited)} samples, {unique} of them unique, of "
                f"{expected}; each must be visited once. Please report this as a bug."
            )
        scored = float(self.scored.compute())
        return {
            "loss": float(self.loss.compute()) / max(1.0, scored),
            "top1": float(self.top1.compute()),
            "top5": float(self.top5.compute()),
            "samples": float(unique),
            "masked": float(len(rows) - len(visited)),
            "bad": float(self.bad.compute()),
        }


def _gather(ids: Tensor) -> Tensor:
    """Return the ids of all ranks, one behind the other; each rank has as many."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return ids
    parts = [torch.empty_like(ids) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, ids)
    return torch.cat(parts)
