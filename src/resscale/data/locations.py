"""Locations of shards are strings: a local path, or an address (`file:`, `http(s)://`, `s3://`,
`gs://`, `pipe:`). This module takes them apart and puts them together; it reads nothing."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

PIPE = "pipe:"
_FILE = "file:"
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|file:|pipe:", re.IGNORECASE)
# Up to a space or quote; what ends a sentence there does not belong to it.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+?(?=[).,:;]*(?:[\s'\"<>]|$))", re.IGNORECASE)
_UNTIL_QUERY = re.compile(r"[^?#]*")
_WEB = re.compile(r"https?://", re.IGNORECASE)


def is_url(location: str) -> bool:
    """Return whether a location is an address, `file:` and `pipe:` included, and not a path."""
    return _URL.match(location) is not None


def is_pipe(location: str) -> bool:
    """Return whether a location is a command whose output is read: `pipe:curl -s ...`."""
    return location[: len(PIPE)].lower() == PIPE


def is_local(location: str) -> bool:
    """Return whether `local_path` knows a location, in a tenth of the time."""
    return not is_url(location) or location[: len(_FILE)].lower() == _FILE


def local_path(location: str) -> Path | None:
    """Return the file or folder that a path or `file:` address means; None for all others.

    `~` is the home folder, and `%20` in a `file:` address a space.
    """
    if not is_url(location):
        return Path(location).expanduser()
    if not is_local(location):
        return None
    rest = location[len(_FILE) :]
    if rest.startswith("//"):
        # What stands between the second and the third slash is a host: none, or this one.
        rest = "/" + rest[2:].partition("/")[2]
    return Path(unquote(rest)).expanduser()


def join(root: str, name: str) -> str:
    """Return the location of `name` in the folder `root`.

    An `http(s)` address keeps its query behind the name, as access tokens need it:
    `https://host/a?key=1` and `b` are `https://host/a/b?key=1`.
    """
    if not is_url(root):
        return str(Path(root) / name)
    path, query = _split_query(root)
    slash = "" if path.endswith("/") else "/"
    return f"{path}{slash}{name}{query}"


def parent(location: str) -> str:
    """Return the folder that a location lies in, the inverse of `join`.

    A bucket or host has none above it and comes back as it is.
    """
    if not is_url(location):
        return str(Path(location).parent)
    path, query = _split_query(location)
    path = path.rstrip("/")
    start = path.find("://") + 3 if "://" in path else len(_FILE)
    slash = path.rfind("/", start)
    if slash < 0:
        return location
    # The root folder of a `file:///` address is its third slash.
    return path[: max(slash, start + 1 if path[start] == "/" else start)] + query


def name_of(location: str) -> str:
    """Return the last part of a location, without the query of an `http(s)` address."""
    if not is_url(location):
        return Path(location).name
    return _split_query(location)[0].rstrip("/").rpartition("/")[2]


def shown(location: str) -> str:
    """Return a location without what may be secret: an address's query, fragment and credentials.

    Paths come back as they are; of a command, its addresses are cut so.
    """
    if is_pipe(location):
        return without_secrets(location)
    scheme, mark, rest = location.partition("://")
    if not is_url(location) or not mark or scheme.lower() == "file":
        return location
    host, slash, path = _UNTIL_QUERY.match(rest)[0].partition("/")  # type: ignore[index]
    return f"{scheme}{mark}{host.rpartition('@')[2]}{slash}{path}"


def without_secrets(text: str) -> str:
    """Return a text, as another library's message is, with each address in it as `shown`."""
    return _ADDRESS.sub(lambda found: shown(found[0]), text)


def _split_query(location: str) -> tuple[str, str]:
    """Return an address and its query with the `?`; a `?` elsewhere belongs to the name."""
    if not _WEB.match(location):
        return location, ""
    path, mark, query = location.partition("?")
    return path, mark + query
