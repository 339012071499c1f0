"""Manifests and offset indices of shards that have none, made once and kept in the user's cache.

```
<cache folder>/indexed/
  <list>.lock      held by the process that looks at these shards; the others of the node wait
  <list>.json      which entry they had last, and when that was asked for
  <content>/       manifest.json and the indices; its name is a digest of all locations, sizes and
                   versions (ETag or time of change), so that a changed shard is noticed
```
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from resscale.data.builtin import CACHE_VARIABLE, cache_folder
from resscale.data.index_shards import index_shards
from resscale.data.locations import is_url, local_path, parent, shown
from resscale.data.manifest import MANIFEST_NAME, Manifest
from resscale.data.shard_pool import IN_THREADS, run_on_shards
from resscale.errors import DataFormatError, UserInputError

FRESH_S = 60.0
"""Seconds for which an answer about remote shards holds: the ranks of a node start together."""
_FOLDER = "indexed"
_LOCK_POLL_S = 0.1
_SAY_AFTER_S = 10.0
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


def cached_manifest(shards: Sequence[str]) -> Manifest:
    """Return the manifest of shards that have none; index them if the cache does not know them.

    Of several processes that ask at once, one works and the others wait for it. Where locks do not
    reach over all nodes that share the cache, several may work; the first to end wins.

    Args:
        shards: locations of shards of one folder, in order.

    Raises:
        UserInputError: the cache folder cannot be written.
        DataFormatError: a shard is missing or damaged.
        RemoteError: an address that does not answer.
    """
    # Relative paths mean other files in another working folder.
    shards = [os.path.abspath(s) if not is_url(s) else s for s in shards]  # noqa: PTH100
    folder = cache_folder() / _FOLDER
    listing = _digest(list(shards))
    try:
        # Looked at without the lock: all ranks of a job may share this folder, one after the other
        # they would wait for it.
        known = None if _are_remote(shards) else _content_key(shards)
        if known is not None and (folder / known / MANIFEST_NAME).is_file():
            return Manifest.load(folder / known)
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f"{listing}.lock", parent(shards[0])):
            stamp = folder / f"{listing}.json"
            key = _fresh_key(stamp, time.time()) if _are_remote(shards) else None
            if key is None:
                key = _content_key(shards)
                _write_stamp(stamp, key)
            entry = folder / key
            if not (entry / MANIFEST_NAME).is_file():
                _index(shards, entry)
    except OSError as error:
        raise UserInputError(
            f"Cannot index shards into {folder} ({error.strerror}). Set {CACHE_VARIABLE} to a "
            f"folder that you can write, or index them beforehand with `resscale index`."
        ) from error
    return Manifest.load(entry)


def _index(shards: Sequence[str], entry: Path) -> None:
    print(
        f"resscale: {len(shards):,} shards in {shown(parent(shards[0]))} have no {MANIFEST_NAME}: "
        f"they "
        f"are indexed once, into {entry.parent}",
        file=sys.stderr,
        flush=True,
    )
    temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        # Threads, no processes: those would start a fork server, which training starts its own
        # way. No checksums: they would take as long as copying the shards.
        index_shards(shards, processes=IN_THREADS, out=str(temporary), checksums=False)
        temporary.chmod(0o755)  # mkdtemp's are for the owner only; a cache may be shared
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)  # a part of it was removed by hand
        try:
            temporary.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
            # Another node was first.
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _content_key(shards: Sequence[str]) -> str:
    with closing(run_on_shards(_version_of, shards, IN_THREADS)) as found:
        versions = dict(found)
    return _digest([[location, versions[location]] for location in shards])


def _version_of(location: str) -> tuple[str, list[Any]]:
    if (path := local_path(location)) is not None:
        try:
            facts = path.stat()
        except OSError as error:
            raise DataFormatError(f"{location} cannot be read ({error.strerror}).") from error
        return location, [facts.st_size, facts.st_mtime_ns]
    from resscale.data import remote

    about = remote.stat(location)
    return location, [about.size, about.tag]


def _fresh_key(stamp: Path, now_s: float) -> str | None:
    """Return the key that another process has just found, if it is young enough."""
    try:
        facts = json.loads(stamp.read_text())
        return str(facts["key"]) if 0 <= now_s - facts["asked_at_s"] < FRESH_S else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_stamp(stamp: Path, key: str) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=".stamp-", dir=stamp.parent)) / stamp.name
    temporary.write_text(json.dumps({"key": key, "asked_at_s": time.time()}))
    temporary.replace(stamp)
    temporary.parent.rmdir()


def _are_remote(shards: Sequence[str]) -> bool:
    return local_path(shards[0]) is None


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


@contextmanager
def _lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file; it is let go by the system when the process ends, however it ends."""
    with path.open("a") as file:
        began, said = time.monotonic(), False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() - began > _SAY_AFTER_S and not said:
                    said = True
                    print(
                        f"resscale: waiting for the process that indexes {shown(what)}",
                        file=sys.stderr,
                        flush=True,
                    )
                time.sleep(_LOCK_POLL_S)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                break  # a file system without locks: several processes may do the same work
        yield
