"""Which classes a net confuses: the worst ones, the pairs, and a matrix of those most involved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from resscale.report.mistakes_file import Measured


@dataclass(frozen=True)
class ClassResult:
    """How one class was classified.

    Args:
        label: the class.
        samples: images of it that were scored.
        hits: right ones.
        hits_top5: those with the label among the five likeliest classes.
        taken_for: the class that it was most often taken for, and how often; None: never for any.
    """

    label: int
    samples: int
    hits: int
    hits_top5: int
    taken_for: tuple[int, int] | None

    @property
    def top1(self) -> float:
        """Share of right ones."""
        return self.hits / self.samples


@dataclass(frozen=True)
class Matrix:
    """Images of some classes by what they were taken for.

    Args:
        labels: the classes, in the order of rows and columns.
        counts: rows are labels, columns predictions.
        others: images of each row that were taken for a class outside the matrix.
        samples: images of each row.
    """

    labels: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...]
    others: tuple[int, ...]
    samples: tuple[int, ...]


def worst_classes(measured: Measured, most: int = 20) -> list[ClassResult]:
    """Return the classes with the lowest share of right answers, the worst first.

    Classes without images are left out, and so are those without a mistake. Of equal shares that of
    more images comes first, for it is known better.

    Args:
        measured: the counts.
        most: classes.
    """
    taken_for: dict[int, tuple[int, int]] = {}
    for label, predicted, count in sorted(measured.pairs, key=lambda p: (p[2], -p[1])):
        taken_for[label] = (predicted, count)
    results = [
        ClassResult(label, samples, hits, top5, taken_for.get(label))
        for label, (samples, hits, top5) in enumerate(
            zip(measured.samples, measured.hits, measured.hits_top5, strict=True)
        )
        if hits < samples
    ]
    return sorted(results, key=lambda r: (r.top1, -r.samples, r.label))[:most]


def confused_pairs(measured: Measured, most: int = 15) -> list[tuple[int, int, int]]:
    """Return label, predicted class and images of the pairs with the most mistakes.

    Args:
        measured: the counts.
        most: pairs.
    """
    return sorted(measured.pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))[:most]


def involved_classes(measured: Measured, most: int = 12) -> tuple[int, ...]:
    """Return the classes of a matrix: all of few; of many those that are mixed up most.

    The pairs with the most mistakes, both directions together, give their classes in turn. A class
    comes to stand beside the one that it is mixed up with, so that what belongs together lies
    around the matrix's diagonal.

    Args:
        measured: the counts.
        most: classes, at least 2.
    """
    appearing = {label for label, samples in enumerate(measured.samples) if samples}
    appearing |= {predicted for _, predicted, _ in measured.pairs}
    if len(appearing) <= most:
        return tuple(sorted(appearing))
    both: Counter[tuple[int, int]] = Counter()
    for label, predicted, count in measured.pairs:
        both[min(label, predicted), max(label, predicted)] += count
    chosen: list[int] = []
    for (low, high), _ in sorted(both.items(), key=lambda entry: (-entry[1], entry[0])):
        new = [label for label in (low, high) if label not in chosen]
        if len(chosen) + len(new) > most:
            continue
        if len(new) == 1:
            known = high if new[0] == low else low
            chosen.insert(chosen.index(known) + 1, new[0])
        else:
            chosen += new
    return tuple(chosen)


def confusion_matrix(measured: Measured, labels: Sequence[int]) -> Matrix:
    """Return the matrix of some classes.

    Args:
        measured: the counts.
        labels: the classes, each once.
    """
    place = {label: row for row, label in enumerate(labels)}
    counts = [[0] * len(labels) for _ in labels]
    for row, label in enumerate(labels):
        counts[row][row] = measured.hits[label]
    for label, predicted, count in measured.pairs:
        if label in place and predicted in place:
            counts[place[label]][place[predicted]] = count
    samples = tuple(measured.samples[label] for label in labels)
    return Matrix(
        labels=tuple(labels),
        counts=tuple(map(tuple, counts)),
        others=tuple(total - sum(row) for total, row in zip(samples, counts, strict=True)),
        samples=samples,
    )
