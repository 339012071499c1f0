"""A checkpoint's mistakes as parts of a run's page: classes, pictures, confusion."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from html import escape

from resscale.report.confusion import (
    Matrix,
    confused_pairs,
    confusion_matrix,
    involved_classes,
    worst_classes,
)
from resscale.report.elements import Cell, counted, section_of, table_of
from resscale.report.mistakes_file import Measured, Shown, identify, read_measured
from resscale.report.runs import Run

_SHORT_NAME = 4  # characters that fit above a column of the matrix
# Opacity of the deepest colours: text stays readable on them, on white paper and on dark.
_HIT_OPACITY, _MISTAKE_OPACITY = 0.45, 0.6
_TOP = 5


def mistakes_sections(run: Run) -> str:
    """Return the sections on a run's mistakes, or how to have them measured.

    Raises:
        DataFormatError: what was measured is damaged.
    """
    measured = read_measured(run.path)
    if measured is None:
        command = f"resscale report {shlex.quote(str(run.path))} --mistakes"
        return section_of(
            "Mistakes",
            "<p>Not measured. Classes, pictures and confusion of its best checkpoint: "
            f"<code>{escape(command)}</code></p>",
        )
    parts = [_facts(run, measured)]
    if measured.num_mistakes:
        parts += [_worst(measured), _sheet(measured), _confusion(measured), _pairs(measured)]
    return "\n".join(parts)


def _facts(run: Run, measured: Measured) -> str:
    """Return what was measured, of which weights, on which images."""
    scored, mistakes = measured.num_scored, measured.num_mistakes
    weights = "averaged weights" if measured.averaged else "weights as trained"
    why = f" ({escape(measured.why)})" if measured.why else ""
    classes = len(measured.samples)
    result = (
        f"<p><strong>{mistakes:,} of {counted(scored, 'validation image')}</strong> "
        f"({100 * mistakes / max(1, scored):.2f}%) {'is' if mistakes == 1 else 'are'} taken for "
        f"another class, out of {classes:,} class{'' if classes == 1 else 'es'}.</p>"
    )
    source = (
        f"<p>Measured {escape(measured.date)} on <code>{escape(measured.images)}</code>, at "
        f"{measured.crop_px} pixels in {escape(measured.precision)}, each image once: "
        f"<code>{escape(measured.checkpoint)}</code> behind step {measured.global_step:,}, "
        f"{weights}{why}.</p>"
    )
    return section_of("Mistakes", result + source + _stale(run, measured) + _damaged(measured))


def _stale(run: Run, measured: Measured) -> str:
    """Return a warning where the checkpoint has been written anew since."""
    path = run.path / measured.checkpoint
    try:
        is_stale = identify(path) != measured.identity
    except OSError:
        return ""  # it has made room for newer ones: nothing contradicts what was measured
    if not is_stale:
        return ""
    return (
        f'<p><span class="warn">older</span> <code>{escape(measured.checkpoint)}</code> has been '
        f"written anew since: measure again with <code>--mistakes</code>.</p>"
    )


def _damaged(measured: Measured) -> str:
    if not measured.num_bad:
        return ""
    shown = "; ".join(
        f"<code>{escape(key)}</code> ({escape(reason)})" for key, reason in measured.bad
    )
    more = measured.num_bad - len(measured.bad)
    return (
        f'<p><span class="warn">{counted(measured.num_bad, "image")} cannot be decoded</span> and '
        f"count nowhere: {shown}{f'; and {more:,} more' if more > 0 else ''}</p>"
    )


def _worst(measured: Measured) -> str:
    results = worst_classes(measured)
    with_top5 = len(measured.samples) > _TOP
    titles = ["class", "images", "top-1, %", *(["top-5, %"] if with_top5 else []), "taken for"]
    rows: list[list[Cell]] = []
    for result in results:
        taken_for = "–"
        if result.taken_for is not None:
            other, count = result.taken_for
            taken_for = f"{escape(measured.name(other))} ({count:,} times)"
        rows.append(
            [
                (escape(measured.name(result.label)), False),
                (f"{result.samples:,}", True),
                (f"{100 * result.top1:.1f}", True),
                *([(f"{100 * result.hits_top5 / result.samples:.1f}", True)] * with_top5),
                (taken_for, False),
            ]
        )
    empty = sum(1 for samples in measured.samples if not samples)
    note = (
        "Classes by their share of right answers, the worst first, and what each is most often "
        "taken for. A share of few images is known roughly: of 50 images, give or take 14 points."
    )
    if empty:
        note += f" Classes without validation images: {empty:,}."
    # Twenty cards would make a phone's page long, and these columns are narrow.
    table = table_of(titles, rows, cards=False)
    return section_of(
        "Worst-classified classes", f'<div class="wide">{table}</div><p class="note">{note}</p>'
    )


def _sheet(measured: Measured) -> str:
    tiles = "\n".join(_tile(measured, shown) for shown in measured.confident)
    note = (
        "Each picture is what the net saw, its evaluation crop. First what it was taken for and "
        "the probability that the net gave to it, then its label; wrong labels turn up here first."
    )
    return section_of(
        "Most confident mistakes", f'<p class="note">{note}</p>\n<ul class="sheet">\n{tiles}\n</ul>'
    )


def _tile(measured: Measured, shown: Shown) -> str:
    label, predicted = (escape(measured.name(c)) for c in (shown.label, shown.predicted))
    given = shown.label_probability
    own = "" if given is None else f" <span>{_probability(given)}</span>"
    kind = ' class="tiny"' if shown.is_tiny else ""
    # The label's text stands below; twice would be read twice.
    return (
        f'<li><img{kind} alt="" src="{escape(shown.thumbnail, quote=True)}">'
        f"<p><strong>{predicted}</strong> <span>{_probability(shown.probability)}</span></p>"
        f"<p>label {label}{own}</p><p><code>{escape(shown.key)}</code></p></li>"
    )


def _confusion(measured: Measured) -> str:
    matrix = confusion_matrix(measured, involved_classes(measured))
    is_whole = not any(matrix.others)
    shares = [
        count / total
        for row, (counts, total) in enumerate(zip(matrix.counts, matrix.samples, strict=True))
        for column, count in enumerate(counts)
        if row != column and total
    ]
    largest = max(shares, default=0.0)
    chosen = "" if is_whole else ", the classes that are mixed up most"
    note = (
        f"Images by label (rows) and by what they were taken for (columns){chosen}. Right answers "
        f"are blue. Mistakes are orange, the deeper the larger their share of the row; the deepest "
        f"is {largest:.1%}."
    )
    names = [measured.name(label) for label in matrix.labels]
    content = f'<div class="wide">{_matrix_table(matrix, names, largest)}</div>'
    return section_of("Confusion", f'{content}<p class="note">{escape(note)}</p>')


def _matrix_table(matrix: Matrix, names: Sequence[str], largest: float) -> str:
    """Return the matrix; long names are numbered, so that its columns stay narrow."""
    are_short = all(len(name) <= _SHORT_NAME for name in names)
    with_others = any(matrix.others)
    heads = [
        f'<th scope="col">{escape(name)}</th>'
        if are_short
        else f'<th scope="col"><abbr title="{escape(name, quote=True)}">{number}</abbr></th>'
        for number, name in enumerate(names, 1)
    ]
    heads += ['<th scope="col">other</th>'] * with_others + ['<th scope="col">images</th>']
    rows = []
    for row, name in enumerate(names):
        cells = "".join(_matrix_cells(matrix, row, largest))
        ends = [matrix.others[row]] * with_others + [matrix.samples[row]]
        number = "" if are_short else f"{row + 1} "
        rows.append(
            f'<tr><th scope="row">{number}{escape(name)}</th>{cells}'
            + "".join(f"<td>{count:,}</td>" for count in ends)
            + "</tr>"
        )
    corner = '<td><span class="missing">label</span></td>'
    return (
        f'<table class="matrix">\n<thead><tr>{corner}{"".join(heads)}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody>\n</table>"
    )


def _matrix_cells(matrix: Matrix, row: int, largest: float) -> Iterable[str]:
    total = matrix.samples[row]
    for column, count in enumerate(matrix.counts[row]):
        if not count:
            yield '<td><span class="missing">0</span></td>'
            continue
        is_hit = row == column
        share = count / total
        opacity = _HIT_OPACITY * share if is_hit else _MISTAKE_OPACITY * share / largest
        kind = "hit" if is_hit else "miss"
        yield f'<td class="{kind}" style="--heat: {opacity:.3f}">{count:,}</td>'


def _pairs(measured: Measured) -> str:
    rows: list[list[Cell]] = [
        [
            (escape(measured.name(label)), False),
            (escape(measured.name(predicted)), False),
            (f"{count:,}", True),
            (f"{100 * count / max(1, measured.samples[label]):.1f}%", True),
        ]
        for label, predicted, count in confused_pairs(measured)
    ]
    titles = ["label", "taken for", "images", "of the class"]
    table = table_of(titles, rows, cards=False)
    return section_of("Most confused pairs", f'<div class="wide">{table}</div>')


def _probability(value: float) -> str:
    """Return a percentage that says 100 only of what is certain to the last digit shown."""
    return f"{100 * value:.1f}%" if value < 0.9995 else f"{100 * min(value, 0.99999):.3f}%"
