"""The report as one HTML page, its pictures as PNG and the pages of its runs beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from resscale import __version__
from resscale.errors import UserInputError
from resscale.report.curves import Picture, colours, draw
from resscale.report.elements import NOT_RECORDED, Cell, counted, picture_of, section_of, table_of
from resscale.report.groups import Group, differences
from resscale.report.response_figure import draw_responses
from resscale.report.results import Result, Statistic, summarise
from resscale.report.run_page import link, page_names, render_run
from resscale.report.runs import Run
from resscale.report.style import PAGE, STYLE

_SUFFIXES = (".html", ".htm")
_TITLE_CHARACTERS = 70
_WHOLE_CHARACTERS = 16  # shorter lists of seeds stay on one line


def write_report(groups: Sequence[Group], out: Path, date: str) -> list[Path]:
    """Write the page, its pictures and a page per run; return their paths.

    The pictures are `<stem of out>-<picture>.png`, the pages `<stem of out>-<run>.html`.

    Args:
        groups: what to draw, at least one.
        out: the page, ending in .html.
        date: of the report, in words.

    Raises:
        UserInputError: `out` is no name of a page, or cannot be written.
        DataFormatError: a file of a run is damaged.
    """
    check_page(out)
    responses = draw_responses(groups)
    pictures = [*draw(groups), *([responses] if responses else [])]
    pages = page_names([run for group in groups for run in group.runs], out)
    files = [(out, render(groups, pictures, date, pages).encode())]
    for picture in pictures:
        files.append((out.with_name(f"{out.stem}-{picture.name}.png"), picture.png()))
    for group in groups:
        for run in group.runs:
            page = render_run(run, group.name, out.name, date)
            files.append((out.with_name(pages[run.path]), page.encode()))
    for path, content in files:
        try:
            path.write_bytes(content)
        except OSError as error:
            raise UserInputError(
                f"Cannot write the report {path} ({error.strerror}); its folder must be "
                f"writable. Choose another: --out FILE"
            ) from error
    return [path for path, _ in files]


def check_page(out: Path) -> None:
    """Find a name that no page can have before anything is measured or drawn.

    Raises:
        UserInputError: it does not end in .html, or its folder is not there.
    """
    if out.suffix.lower() not in _SUFFIXES:
        better = out / "report.html" if out.is_dir() else out.with_suffix(".html")
        raise UserInputError(
            f"--out {out} must end in .html, for it becomes one page; the pictures are written "
            f"beside it. Choose {better}, say."
        )
    if not out.parent.is_dir():
        raise UserInputError(
            f"--out {out} lies in {out.parent}, and there is no such folder. Make it, or choose "
            f"another: --out FILE"
        )


def render(
    groups: Sequence[Group],
    pictures: Sequence[Picture],
    date: str,
    pages: Mapping[Path, str] | None = None,
) -> str:
    """Return the page.

    Args:
        groups: what to show, at least one.
        pictures: the figures of these groups.
        date: of the report, in words.
        pages: file names of the runs' own pages, by the runs' paths; None: there are none.
    """
    runs = [run for group in groups for run in group.runs]
    names = [group.name for group in groups]
    title = ", ".join(names)
    if len(title) > _TITLE_CHARACTERS:
        title = f"{len(groups)} groups of runs"
    facts = f"{counted(len(runs), 'run')} in {counted(len(groups), 'group')}. " if runs[1:] else ""
    sections = [
        _results(groups),
        '<div class="pictures">',
        *(picture_of(picture, names) for picture in pictures),
        "</div>",
        _differences(groups),
        _runs(groups, pages or {}),
        _faults(groups),
        _commands(groups),
    ]
    return PAGE.substitute(
        title=escape(title),
        style=STYLE,
        facts=f"{facts}Drawn {escape(date)} by resscale {__version__}.",
        sections="\n".join(sections),
    )


def _results(groups: Sequence[Group]) -> str:
    results = [summarise(group) for group in groups]
    with_ema = any(result.final_ema_error_pct for result in results)
    titles = [
        "group",
        "runs (seeds)",
        "final test error, %",
        "best test error, %",
        *(["final EMA test error, %"] if with_ema else []),
        "final training error, %",
        "parameters",
        "GMACs",
        "images/s",
        "data wait, %",
        "epochs",
        "status",
    ]
    rows = [
        _result_row(result, colour, with_ema)
        for result, colour in zip(results, colours(len(groups)), strict=True)
    ]
    notes = (
        "Errors: mean ± sample standard deviation (n - 1) over the group's finished runs; where "
        "none is finished, over all its runs as far as they are. A best error is chosen on the "
        "very images that it is measured on, so it flatters. Training error: mean of the last "
        "epoch's augmented batches. GMACs: 10⁹ multiply-adds per image."
    )
    return section_of("Results", f'{table_of(titles, rows)}<p class="note">{notes}</p>')


def _result_row(result: Result, colour: str, with_ema: bool) -> list[Cell]:
    seeds = ", ".join(dict.fromkeys(result.seeds))
    kind = "whole" if len(seeds) < _WHOLE_CHARACTERS else "seeds"
    epochs = "–".join(str(e) for e in sorted({min(result.epochs), max(result.epochs)}))
    total = len(result.seeds)
    states = [f"{result.num_done} of {total} done"] if total > 1 and result.states else []
    status = "<br>".join(
        [*map(escape, states), *(f'<span class="warn">{escape(s)}</span>' for s in result.states)]
    )
    parameters, macs = result.num_parameters, result.num_macs
    wait = result.data_wait_pct
    return [
        (f'<span class="swatch" style="background:{colour}"></span>{escape(result.name)}', False),
        (f'<span class="{kind}">{total} ({escape(seeds)})</span>', False),
        (_statistic(result.final_test_error_pct), True),
        (_statistic(result.best_test_error_pct), True),
        *([(_statistic(result.final_ema_error_pct), True)] if with_ema else []),
        (_statistic(result.final_train_error_pct), True),
        (NOT_RECORDED if parameters is None else f"{parameters:,}", True),
        (NOT_RECORDED if macs is None else f"{macs / 1e9:.3g}", True),
        (NOT_RECORDED if result.images_per_s is None else f"{result.images_per_s:,.0f}", True),
        (NOT_RECORDED if wait is None else f"{wait:.1f}", True),
        (epochs, True),
        (status or "done", False),
    ]


def _differences(groups: Sequence[Group]) -> str:
    if len(groups) < 2:
        return ""
    found = differences(groups)
    if not found:
        return section_of("Differences", "<p>The configurations are equal apart from seeds.</p>")
    rows: list[list[Cell]] = [
        [
            (f"<code>{escape(difference.key)}</code>", False),
            *((f"<code>{escape(value)}</code>", False) for value in difference.values),
        ]
        for difference in found
    ]
    shown = table_of(["key", *(escape(group.name) for group in groups)], rows, cards=False)
    note = "The configuration keys whose values are not the same everywhere; seeds are left out."
    return section_of("Differences", f'<div class="wide">{shown}</div><p class="note">{note}</p>')


def _runs(groups: Sequence[Group], pages: Mapping[Path, str]) -> str:
    titles = ["run", "group", "seed", "status", "ranks", "last written"]
    rows: list[list[Cell]] = []
    for group in groups:
        for run in group.runs:
            state = escape(run.state)
            if not run.is_done:
                reason = run.summary.get("reason")
                state = f'<span class="warn">{state}</span>'
                state += f"<br>{escape(str(reason))}" if reason else ""
            name = f"<code>{escape(str(run.path))}</code>"
            if run.path in pages:
                name = f'<a href="{link(pages[run.path])}">{name}</a>'
            cells = (
                name,
                escape(group.name),
                escape(run.seed),
                state,
                escape(str(run.summary.get("world_size") or "not recorded")),
                escape(run.last_written),
            )
            rows.append([(cell, False) for cell in cells])
    return section_of("Runs", table_of(titles, rows))


def _faults(groups: Sequence[Group]) -> str:
    lines = [line for group in groups for run in group.runs for line in _faults_of(run)]
    if not lines:
        return section_of("Faults", "<p>None: no damaged samples, no resumes.</p>")
    items = "".join(f"<li>{line}</li>" for line in lines)
    return section_of("Faults", f"<ul>{items}</ul>")


def _faults_of(run: Run) -> Iterable[str]:
    name = f"<code>{escape(str(run.path))}</code>"
    if run.bad_samples:
        yield (
            f"{name}: {counted(run.bad_samples, 'damaged sample')} replaced, listed in its "
            f"<code>events.jsonl</code>"
        )
    if run.resumed_at:
        word = "step" if len(run.resumed_at) == 1 else "steps"
        steps = ", ".join(f"{step:,}" for step in run.resumed_at)
        yield f"{name}: resumed {counted(len(run.resumed_at), 'time')}, at {word} {steps}"


def _commands(groups: Sequence[Group]) -> str:
    commands = dict.fromkeys(
        str(run.summary.get("command") or "") for group in groups for run in group.runs
    )
    known = [command for command in commands if command]
    items = "".join(f"<li><code>{escape(command)}</code></li>" for command in known)
    return section_of("Commands", f"<ul>{items}</ul>" if items else f"<p>{NOT_RECORDED}</p>")


def _statistic(statistic: Statistic | None) -> str:
    if statistic is None:
        return NOT_RECORDED
    spread = f" ± {statistic.sd:.2f}" if statistic.sd is not None else ""
    return f"{statistic.mean:.2f}{spread}"
