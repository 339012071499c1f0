"""What a net gets wrong, counted batch by batch in memory that does not grow with the images.

Kept are counts per class, counts per pair of classes that were mixed up, one bit per image that it
was visited, and the few most confident mistakes.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from resscale.data.dataset import IGNORED
from resscale.errors import ResscaleError

MOST_MISTAKES = 40
"""Confident mistakes that are kept with their images."""

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Mistake:
    """One image that was taken for another class.

    Args:
        id: of the sample.
        label: its class.
        predicted: what the net took it for.
        probability: that the net gave to that.
        label_probability: that the net gave to the label; None: not among its likeliest classes.
        image: what the net saw, uint8 (H, W, C).
    """

    id: int
    label: int
    predicted: int
    probability: float
    label_probability: float | None
    image: Pixels = field(repr=False, compare=False)


class MistakeCounts:
    """Counts predictions against labels.

    Args:
        num_classes: labels are below it.
        num_samples: ids are below it.
        most_mistakes: confident ones to keep.

    Attributes:
        samples: images per class that were scored, int64 (num_classes,).
        hits: those whose likeliest class is the label.
        hits_top5: those whose label is among the likeliest that `add` is told, usually five.
        pairs: images by label × num_classes + predicted class, of those that differ.
    """

    def __init__(
        self, num_classes: int, num_samples: int, most_mistakes: int = MOST_MISTAKES
    ) -> None:
        self.num_classes = num_classes
        self.most_mistakes = most_mistakes
        self.samples = np.zeros(num_classes, dtype=np.int64)
        self.hits = np.zeros(num_classes, dtype=np.int64)
        self.hits_top5 = np.zeros(num_classes, dtype=np.int64)
        self.pairs: Counter[int] = Counter()
        self._visits = np.zeros(num_samples, dtype=np.uint8)
        # The least confident first; of equal ones that with the greatest id, so that what is kept
        # does not depend on the batches.
        self._kept: list[tuple[float, int, Mistake]] = []

    def add(
        self, ids: Int64, labels: Int64, classes: Int64, probabilities: Float32, images: Pixels
    ) -> None:
        """Count a batch.

        Args:
            ids: of the samples, (N,); -1 for padding.
            labels: (N,); -1 where an image does not count, as a damaged one.
            classes: the likeliest, best first, (N, K).
            probabilities: of these, (N, K).
            images: uint8 (N, H, W, C); what is kept of them is copied.

        Raises:
            ResscaleError: a sample was visited before.
        """
        visited = ids[ids >= 0]
        if len(np.unique(visited)) < len(visited) or self._visits[visited].any():
            raise ResscaleError(
                "a validation image was visited twice; each must be visited once. Please report "
                "this as a bug."
            )
        self._visits[visited] = 1
        rows = np.flatnonzero((labels != IGNORED) & (ids >= 0))
        label, predicted = labels[rows], classes[rows, 0]
        hit = predicted == label
        self.samples += self._count(label)
        self.hits += self._count(label[hit])
        self.hits_top5 += self._count(label[(classes[rows] == label[:, None]).any(axis=1)])
        codes, counts = np.unique(
            label[~hit] * self.num_classes + predicted[~hit], return_counts=True
        )
        self.pairs.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        for row in rows[~hit].tolist():
            self._keep(
                int(ids[row]), int(labels[row]), classes[row], probabilities[row], images, row
            )

    def confident(self) -> list[Mistake]:
        """Return the mistakes that were kept, the most confident first."""
        return [mistake for _, _, mistake in sorted(self._kept, key=lambda e: (-e[0], -e[1]))]

    def check_complete(self) -> None:
        """Find samples that were not visited.

        Raises:
            ResscaleError: there are some.
        """
        missing = int((self._visits == 0).sum())
        if missing:
            raise ResscaleError(
                f"{missing} of {len(self._visits)} validation images were not visited; each must "
                f"be visited once. Please report this as a bug."
            )

    def _count(self, labels: Int64) -> Int64:
        return np.bincount(labels, minlength=self.num_classes).astype(np.int64)

    def _keep(
        self,
        sample: int,
        label: int,
        classes: Int64,
        probabilities: Float32,
        images: Pixels,
        row: int,
    ) -> None:
        """Keep a mistake, if it is more confident than the least confident of those kept."""
        probability = float(probabilities[0])
        is_full = len(self._kept) >= self.most_mistakes
        if not self.most_mistakes or (is_full and (probability, -sample) < self._kept[0][:2]):
            return
        place = np.flatnonzero(classes == label)
        mistake = Mistake(
            id=sample,
            label=label,
            predicted=int(classes[0]),
            probability=probability,
            label_probability=float(probabilities[place[0]]) if len(place) else None,
            image=images[row].copy(),
        )
        entry = (probability, -sample, mistake)
        if is_full:
            heapq.heapreplace(self._kept, entry)
        else:
            heapq.heappush(self._kept, entry)
