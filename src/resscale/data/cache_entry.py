"""Names of what lies in a cache folder, and the folder's own nature.

```
<cache>/<key>-train-000000.tar       a whole file, checked
<cache>/<key>-104857600.part         one on its way, of so many bytes in the end; locked (flock)
<cache>/<key>-104857600@<who>.part   one that goes on in that start of that machine alone
<cache>/.room.lock                   held for a moment, while room is made
<cache>/.small-1f.lock               held while a small file is loaded
<cache>/<lease>.live, <lease>.needs  what a living process will need (`cache_lease`)
```
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import uuid
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from resscale.data.locations import name_of

PART = ".part"
_PART_NAME = re.compile(r"([0-9a-f]{40})-(\d+)(?:@.*)?\.part")
_WHOLE_NAME = re.compile(r"([0-9a-f]{40})-.*(?<!\.part)")
# On these, locks may hold on one node alone, and two nodes must not write one file.
_NETWORK_FILE_SYSTEMS = (
    "nfs",
    "lustre",
    "beegfs",
    "ceph",
    "cifs",
    "smb",
    "glusterfs",
    "fuse.sshfs",
)


@dataclass(frozen=True)
class CacheSource:
    """A file that may be cached.

    Args:
        url: the whole location, its query included.
        size: bytes.
        version: names the content: its SHA-256, the server's ETag, or what it belongs to.
        sha256: hex digest that the bytes must have; "" if unknown.
    """

    url: str
    size: int
    version: str
    sha256: str = ""

    @cached_property
    def key(self) -> str:
        """Forty hex digits of the whole address, size and version."""
        text = f"{self.url}\n{self.size}\n{self.version}"
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    @cached_property
    def file_name(self) -> str:
        """Name of the whole file in the cache."""
        name = re.sub(r"[^A-Za-z0-9._-]", "_", name_of(self.url))[-100:]
        return f"{self.key}-{name.removesuffix(PART)}"

    def part_name(self, who: str = "") -> str:
        """Name of the file on its way; `who` keeps apart those that cannot go on for each other."""
        return f"{self.key}-{self.size}{f'@{who}' if who else ''}{PART}"


@dataclass(frozen=True)
class CacheEntry:
    """A file in the cache folder.

    Args:
        path: where it lies.
        key: of its source.
        bytes: its size; of a part, its size in the end.
        used_at: time of its last use, seconds.
        is_part: it is on its way, or was left behind so.
    """

    path: Path
    key: str
    bytes: int
    used_at: float
    is_part: bool


def list_entries(folder: Path) -> list[CacheEntry]:
    """Return the files in the cache, those on their way included."""
    found = []
    with os.scandir(folder) as listing:
        for each in listing:
            part = _PART_NAME.fullmatch(each.name)
            whole = None if part else _WHOLE_NAME.fullmatch(each.name)
            try:
                facts = each.stat() if part or whole else None
            except FileNotFoundError:
                continue  # removed, or renamed to its final name, just now
            if facts is not None and part:
                size = max(int(part[2]), facts.st_size)
                found.append(CacheEntry(Path(each.path), part[1], size, facts.st_mtime, True))
            elif facts is not None and whole:
                entry = (Path(each.path), whole[1], facts.st_size, facts.st_mtime, False)
                found.append(CacheEntry(*entry))
    return found


def host_for_parts(folder: Path) -> str:
    """Return this host's name where `folder` lies on a network file system, else ""."""
    kind = file_system_type(folder)
    is_network = kind.startswith(_NETWORK_FILE_SYSTEMS)
    return re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname()) if is_network else ""


@cache
def boot_mark(file: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Return a name of this start of the machine; of this process where the system tells none."""
    try:
        boot = file.read_text().strip()
    except OSError:
        boot = uuid.uuid4().hex
    return f"boot-{boot}"


def file_system_type(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the type of the file system that `path` lies on ("ext4", "nfs4"); "" if unknown."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return ""
    real, best, kind = Path(os.path.realpath(path)), -1, ""
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        # Of mounts on one place the last one is seen.
        if real.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind
