"""Which shards a user means: paths, folders, addresses, `{000..009}` and `*` patterns."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Sequence
from pathlib import Path

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
from resscale.errors import UserInputError

_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_WILD = re.compile(r"[*\[]")  # a `?` is the query of an address


def is_pattern(location: str) -> bool:
    """Return whether a location means shards by name or pattern, and no folder or manifest."""
    name = name_of(location)
    return name.endswith((".tar", *_COMPRESSED)) or bool(re.search(r"[*{]", name))


def expand_shards(patterns: Sequence[str]) -> list[str]:
    """Return the shards that paths, folders, addresses and patterns mean, in their order.

    Raises:
        UserInputError: a command, a pattern that nothing fits, or shards of several folders.
        DataFormatError, RemoteError: a folder of an object store that cannot be listed.
    """
    locations: list[str] = []
    for pattern in patterns:
        if is_pipe(pattern):
            raise UserInputError(
                f"{shown(pattern)} is a command, whose output can be read once and in one "
                f"direction: it "
                f"has no index. data.train takes it as a sequential source (docs/data.md)."
            )
        found = _expand(pattern)
        if not found:
            raise UserInputError(f"No shards fit {shown(pattern)!r}: {_nothing_there(pattern)}")
        locations += found
    locations = list(dict.fromkeys(locations))
    for location in locations:
        if not name_of(location).endswith(".tar"):
            raise UserInputError(_no_tar(location))
    folders = {_folder(location) for location in locations}
    if len(folders) > 1:
        names = ", ".join(sorted(map(shown, folders)))
        raise UserInputError(
            f"The shards lie in {len(folders)} folders ({names}); a manifest is for one. "
            f"Run `resscale index` once for each."
        )
    return locations


def expand_braces(pattern: str) -> list[str]:
    """Return what a pattern's braces mean: `a{0..2}` is `a0`, `a1` and `a2`.

    Raises:
        UserInputError: they do not pair up.
    """
    from braceexpand import braceexpand

    try:
        return list(braceexpand(pattern))
    except ValueError as error:
        raise UserInputError(
            f"{shown(pattern)!r}: its braces do not pair up ({without_secrets(str(error))})."
        ) from error


def expand_local(pattern: str) -> list[Path]:
    """Return the files that a path, a folder of shards or a pattern means, in their order.

    Raises:
        UserInputError: one that the pattern's braces ask for is missing.
    """
    path = local_path(pattern)
    assert path is not None
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    found: list[Path] = []
    for name in expand_braces(str(path)):
        if Path(name).is_file():
            found.append(Path(name))
        elif matches := sorted(glob.glob(name)):  # noqa: PTH207 - patterns may be absolute
            found += [Path(match) for match in matches]
        else:
            raise UserInputError(f"{name} is missing ({pattern!r} asks for it). Correct the path.")
    return found


def _expand(pattern: str) -> list[str]:
    if local_path(pattern) is not None:
        return [str(found) for found in expand_local(pattern)]
    if not is_pattern(pattern):
        return _listed(pattern, "*.tar")
    found = []
    for location in expand_braces(pattern):
        found += (
            _listed(parent(location), name_of(location))
            if _WILD.search(name_of(location))
            else [location]
        )
    return found


def _listed(folder: str, pattern: str) -> list[str]:
    """Return the files of a remote folder that fit a pattern, sorted."""
    if _WILD.search(folder.partition("?")[0]):
        raise UserInputError(
            f"{shown(folder)}: a * may stand in the name of shards, not in that of their folder. "
            f"Name one "
            f"folder; a manifest is for one."
        )
    from resscale.data.remote import list_names

    return [join(folder, name) for name in list_names(folder) if fnmatch.fnmatchcase(name, pattern)]


def _folder(location: str) -> str:
    return parent(location) if is_url(location) else str(Path(location).parent.resolve())


def _nothing_there(pattern: str) -> str:
    if local_path(pattern) is not None:
        return "no such .tar file. Correct the path."
    return (
        "none is listed there. Correct the address; where a server lists no files, name the shards "
        "themselves: 'https://host/train-{000..099}.tar'."
    )


def _no_tar(location: str) -> str:
    remedy = "correct the path"
    if name_of(location).endswith(_COMPRESSED):
        remedy = f"unpack a compressed one: gunzip {name_of(location)}"
    return (
        f"{shown(location)} is no .tar file. A shard is an uncompressed tar, so that images can be "
        f"read from its middle; {remedy}"
    )
