"""Writes predictions: key, the five likeliest classes and their probabilities, as CSV or JSONL."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from resscale.data.dataset import Batch
from resscale.data.samples import Samples
from resscale.errors import UserInputError

FORMATS = (".csv", ".jsonl")


class PredictionWriter(Callback):
    """Collects every rank's predictions; rank 0 writes them in the samples' order.

    Args:
        path: file to write, `.csv` or `.jsonl`.
        samples: names the samples.
        classes: class names; labels are written as numbers where there are none.

    Raises:
        UserInputError: another ending.
    """

    def __init__(self, path: Path, samples: Samples, classes: tuple[str, ...]) -> None:
        if path.suffix not in FORMATS:
            raise UserInputError(
                f"--output {path}: the ending says the format, one of {', '.join(FORMATS)}."
            )
        self.path = path
        self.samples = samples
        self.classes = classes
        self.count = 0
        self._rows: dict[int, dict[str, Any]] = {}

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's rows; padding is left out, an undecodable sample gets its reason."""
        indices, probabilities = (part.cpu().tolist() for part in outputs)
        reasons = {sample.id: sample.reason for sample in batch["bad"]}
        for row, sample in enumerate(batch["id"].tolist()):
            if sample < 0:
                continue
            bad = sample in reasons
            self._rows[sample] = {
                "key": self.samples.key(sample),
                "classes": [] if bad else [self._name(label) for label in indices[row]],
                "probabilities": [] if bad else [round(p, 6) for p in probabilities[row]],
                "error": reasons.get(sample),
            }

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the rows together and write them."""
        rows = self._rows
        if trainer.world_size > 1:
            parts: list[Any] = [None] * trainer.world_size
            distributed.all_gather_object(parts, rows)
            rows = {sample: row for part in parts for sample, row in part.items()}
        self.count = len(rows)
        if trainer.is_global_zero:
            self._write([rows[sample] for sample in sorted(rows)])

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else str(label)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
            if self.path.suffix == ".jsonl":
                file.writelines(json.dumps(row) + "\n" for row in rows)
                return
            width = max((len(row["classes"]) for row in rows), default=0)
            table = csv.writer(file)
            head = [f"{name}_{k}" for k in range(1, width + 1) for name in ("class", "probability")]
            table.writerow(["key", *head, "error"])
            for row in rows:
                pairs = zip(row["classes"], row["probabilities"], strict=True)
                cells = [cell for pair in pairs for cell in pair]
                cells += [""] * (2 * width - len(cells))
                table.writerow([row["key"], *cells, row["error"] or ""])
