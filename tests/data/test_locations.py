"""Locations: paths and addresses, taken apart and put together."""

from pathlib import Path

import pytest

from resscale.data.locations import (
    is_pipe,
    is_url,
    join,
    local_path,
    name_of,
    parent,
    shown,
    without_secrets,
)

ADDRESSES = [
    "http://host:8080/a/t.tar",
    "HTTPS://host/a/t.tar",
    "s3://bucket/a/t.tar",
    "gs://bucket/a/t.tar",
    "file:///a/t.tar",
    "file:/a/t.tar",
    "pipe:cat /a/t.tar",
]
PATHS = ["/a/t.tar", "a/t.tar", "../t.tar", "C:t.tar", "~/t.tar", "s3:/a", "builtin:digits/train"]


def test_addresses_are_told_from_paths() -> None:
    assert all(map(is_url, ADDRESSES))
    assert not any(map(is_url, PATHS))


def test_a_pipe_is_a_command() -> None:
    assert [is_pipe(location) for location in ADDRESSES] == [False] * 6 + [True]


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/a/t.tar", Path("/a/t.tar")),
        ("a/t.tar", Path("a/t.tar")),
        ("~/t.tar", Path.home() / "t.tar"),
        ("file:/a/t.tar", Path("/a/t.tar")),
        ("file:///a/t.tar", Path("/a/t.tar")),
        ("file://localhost/a/t.tar", Path("/a/t.tar")),
        ("file:a/t.tar", Path("a/t.tar")),
        ("file:///a%20b/t.tar", Path("/a b/t.tar")),
        ("s3://bucket/t.tar", None),
        ("http://host/t.tar", None),
        ("pipe:cat /a/t.tar", None),
    ],
)
def test_local_paths(location: str, path: Path | None) -> None:
    assert local_path(location) == path


@pytest.mark.parametrize(
    ("root", "joined"),
    [
        ("/a", "/a/t.tar"),
        (".", "t.tar"),
        ("s3://bucket", "s3://bucket/t.tar"),
        ("s3://bucket/a/", "s3://bucket/a/t.tar"),
        ("http://host/a?key=1", "http://host/a/t.tar?key=1"),
        ("s3://bucket/what?", "s3://bucket/what?/t.tar"),
        ("file:///", "file:///t.tar"),
        ("file:///a", "file:///a/t.tar"),
    ],
)
def test_a_name_in_a_folder_and_the_folder_again(root: str, joined: str) -> None:
    assert join(root, "t.tar") == joined
    assert name_of(joined) == "t.tar"
    expected = "s3://bucket/a" if root == "s3://bucket/a/" else root
    assert parent(joined) == expected


@pytest.mark.parametrize("location", ["s3://bucket", "http://host?key=1"])
def test_nothing_lies_above_a_bucket_or_host(location: str) -> None:
    assert parent(location) == location


@pytest.mark.parametrize(
    ("location", "without"),
    [
        ("https://me:secret@host:8/a/b.tar?sig=secret#secret", "https://host:8/a/b.tar"),
        ("http://host?sig=secret", "http://host"),
        ("http://[no/address?sig=secret", "http://[no/address"),
        ("s3://bucket/a@b.tar", "s3://bucket/a@b.tar"),
        ("s3://id:secret@bucket/a.tar", "s3://bucket/a.tar"),
        ("/data/a?b#c@d.tar", "/data/a?b#c@d.tar"),
        ("file:///data/a?b.tar", "file:///data/a?b.tar"),
        ("pipe:curl 'https://me:secret@h/a?sig=secret' | cat", "pipe:curl 'https://h/a' | cat"),
    ],
)
def test_a_location_is_shown_without_query_and_password(location: str, without: str) -> None:
    assert shown(location) == without


def test_addresses_in_the_text_of_others_are_shown_so_too() -> None:
    said = "no way to 'https://me:secret@h/a?sig=secret' (or http://h:8/b?x=secret): 404"
    assert without_secrets(said) == "no way to 'https://h/a' (or http://h:8/b): 404"
