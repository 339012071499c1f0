"""Data sets that come with resscale, packed into the user's cache folder on first use."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import platformdirs

from resscale import __version__
from resscale.data.digits import digits_splits
from resscale.data.manifest import MANIFEST_NAME
from resscale.errors import UserInputError, nearest

PREFIX = "builtin:"
BUILTIN_SPLITS = ("digits/train", "digits/test")
CACHE_VARIABLE = "RESSCALE_CACHE"
_STALE_AFTER_S = 3600.0


def resolve(location: str) -> str:
    """Return the folder of a built-in split's shards; any other location comes back unchanged.

    Safe when several processes ask at once: each packs into a folder of its own beside the final
    one, the first rename wins, the others are thrown away.

    Args:
        location: `builtin:digits/train`, `builtin:digits/test`, or a path or URL.

    Raises:
        UserInputError: no such built-in data set, or a cache folder that cannot be written.
    """
    if not location.startswith(PREFIX):
        return location
    name = location.removeprefix(PREFIX)
    if name not in BUILTIN_SPLITS:
        known = [PREFIX + split for split in BUILTIN_SPLITS]
        raise UserInputError(
            f"No built-in data set {location!r}; there are {', '.join(known)}."
            f"{nearest(location, known)}"
        )
    data_set, split = name.split("/")
    final = cache_folder() / f"{data_set}-{__version__}"
    folder = final / split
    if not (folder / MANIFEST_NAME).is_file():
        try:
            _pack_digits(final)
        except OSError as error:
            raise UserInputError(
                f"Cannot write the built-in data set into {final.parent} ({error.strerror}). "
                f"Set {CACHE_VARIABLE} to a folder that you can write."
            ) from error
    return str(folder)


def cache_folder() -> Path:
    """Return the cache folder: the variable RESSCALE_CACHE, or the user's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return platformdirs.user_cache_path("resscale")


def _pack_digits(final: Path) -> None:
    from resscale.data.pack import pack_splits
    from resscale.data.pack_plan import PackOptions

    final.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(final)
    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        # The options of a plain `resscale pack digits`; one process: there are two small shards.
        pack_splits(digits_splits(), temporary, PackOptions(quality=100), "resscale pack digits")
        temporary.chmod(0o755)  # mkdtemp's are for the owner only; a cache may be shared
        if final.is_dir() and not _is_whole(final):
            shutil.rmtree(final, ignore_errors=True)  # a part of it was removed by hand
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
            # Another process was first; its shards have the same bytes.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(final: Path) -> bool:
    return all((final / split.name / MANIFEST_NAME).is_file() for split in digits_splits())


def _remove_stale(final: Path) -> None:
    """Remove what processes killed in the middle have left, an hour ago or longer."""
    for leftover in final.parent.glob(f".{final.name}-*"):
        try:
            age_s = time.time() - leftover.stat().st_mtime
        except OSError:
            continue  # its owner has just removed it
        if age_s > _STALE_AFTER_S:
            shutil.rmtree(leftover, ignore_errors=True)
