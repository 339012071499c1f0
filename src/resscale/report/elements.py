"""Tables, sections and pictures as HTML, for all pages of a report."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

from resscale.report.curves import Picture

NOT_RECORDED = '<span class="missing">not recorded</span>'

# A cell: its HTML, and whether it is a number, which stands at the right.
Cell = tuple[str, bool]


def table_of(titles: Sequence[str], rows: Iterable[Sequence[Cell]], *, cards: bool = True) -> str:
    """Return a table whose first column names the row; on a phone, its rows become cards.

    Args:
        titles: HTML of the headings.
        rows: the cells, of at least one row.
        cards: whether it has few enough columns, or long enough cells, for that.
    """
    rows = list(rows)
    numbers = [is_number for _, is_number in rows[0]]
    head = "".join(
        _tag("th", title, n, 'scope="col"') for title, n in zip(titles, numbers, strict=True)
    )
    body = "".join(
        "<tr>"
        + _tag("th", row[0][0], False, 'scope="row"')
        + "".join(
            _tag("td", f"<span>{cell}</span>", number, f'data-label="{title}"')
            for title, (cell, number) in zip(titles[1:], row[1:], strict=True)
        )
        + "</tr>\n"
        for row in rows
    )
    kind = ' class="cards"' if cards else ""
    return f"<table{kind}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"


def section_of(title: str, content: str) -> str:
    """Return a section below a heading.

    Args:
        title: plain text.
        content: HTML.
    """
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>"


def picture_of(picture: Picture, names: Sequence[str]) -> str:
    """Return a section with an embedded figure and its caption.

    Args:
        picture: the figure.
        names: what it shows, for who cannot see it.
    """
    data = base64.b64encode(picture.svg()).decode()
    alt = escape(f"{picture.title}: {', '.join(names)}", quote=True)
    return section_of(
        picture.title,
        f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>",
    )


def counted(number: int, thing: str) -> str:
    """Return a number of things in words, such as `2 runs`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _tag(name: str, content: str, is_number: bool, attributes: str) -> str:
    kind = ' class="number"' if is_number else ""
    return f"<{name}{kind} {attributes}>{content}</{name}>"
