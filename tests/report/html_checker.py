"""Reads a page as a parser does, and wants every tag closed in its place."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Checker(HTMLParser):
    """Collects tags, attributes and text, and wants every tag closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(html: str) -> Checker:
    """The page, read by a parser."""
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def rows_of(html: str, title: str) -> list[list[str]]:
    """The cells' texts of the table below a heading."""
    section = html.partition(f"<h2>{title}</h2>")[2].partition("</section>")[0]
    return [
        [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.S)]
        for row in re.findall(r"<tr>.*?</tr>", section, re.S)
    ]
