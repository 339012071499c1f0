"""The disk that checkpoints go to: room, quota, the right to write, and what it is."""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from resscale.cluster.doctor.finding import Finding, in_units
from resscale.training.checkpoint_space import free_bytes

NAME = "storage"
# File systems in memory: what is written there is gone with the node.
_IN_MEMORY = ("tmpfs", "ramfs")
_FEW_FILES = 1000
# Past this, file systems that cannot reserve room would be written to for minutes.
_LARGEST_RESERVED = 2 << 30


@dataclass(frozen=True)
class StorageFacts:
    """A folder's disk.

    Args:
        folder: where runs are to lie; it need not exist.
        file_system: such as "ext4" or "nfs4"; "" where unknown.
        free: bytes; None where the file system does not say.
        free_files: files that can still be made; None where there is no such limit.
        refused: number of the error that writing led to; None where it went well.
    """

    folder: Path
    file_system: str = ""
    free: int | None = None
    free_files: int | None = None
    refused: int | None = None


def check_storage(
    facts: StorageFacts, checkpoint_bytes: int | None, keep_last: int
) -> list[Finding]:
    """Judge whether checkpoints will fit.

    Args:
        facts: of the disk.
        checkpoint_bytes: of one; None where no configuration says.
        keep_last: how many of the newest are kept; the best and the one being written add to them.
    """
    if facts.refused is not None:
        return [_refusal(facts, checkpoint_bytes)]
    findings = []
    have = f"{facts.folder}: " + (
        "free space unknown" if facts.free is None else f"{in_units(facts.free)} free"
    )
    count = keep_last + 2
    if facts.free is not None and checkpoint_bytes is not None:
        needed = count * checkpoint_bytes
        have += f"; {count} checkpoints need {in_units(needed)}"
        if facts.free < needed:
            findings.append(
                Finding(
                    NAME,
                    "fail" if facts.free < 2 * checkpoint_bytes else "warn",
                    have,
                    "free space, set --runs_dir on a larger disk, or lower --checkpoint.keep_last",
                )
            )
    if facts.free_files is not None and facts.free_files < _FEW_FILES:
        findings.append(
            Finding(
                NAME,
                "warn",
                f"{facts.folder}: room for {facts.free_files} more files, by the number of inodes",
                "remove files there, or set --runs_dir on another disk",
            )
        )
    if facts.file_system in _IN_MEMORY:
        findings.append(
            Finding(
                NAME,
                "warn",
                f"{facts.folder} is on {facts.file_system}, in memory: checkpoints there are gone "
                f"with the node",
                "set --runs_dir on a disk, or on the cluster's file system",
            )
        )
    kind = f", {facts.file_system}" if facts.file_system else ""
    return findings or [Finding(NAME, "ok", have + kind)]


def probe_storage(folder: Path, checkpoint_bytes: int | None) -> StorageFacts:
    """Reserve a checkpoint's room for a moment: a quota shows itself only so.

    Args:
        folder: where runs are to lie; nothing is made there but a file without a name.
        checkpoint_bytes: how much to reserve; None: a little.
    """
    present = existing_parent(folder)
    size = min(checkpoint_bytes or 4096, _LARGEST_RESERVED)
    refused = None
    try:
        with tempfile.TemporaryFile(dir=present) as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        refused = error.errno
    volume = os.statvfs(present)
    return StorageFacts(
        folder,
        file_system(present, Path("/proc/self/mountinfo").read_text()),
        free_bytes(present),
        volume.f_favail if volume.f_files else None,
        refused,
    )


def existing_parent(folder: Path) -> Path:
    """Return the nearest folder above that exists, or the folder itself."""
    folder = folder.expanduser().absolute()
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def file_system(folder: Path, mounts: str) -> str:
    """Return the type of the file system that a folder lies on.

    Args:
        folder: an absolute path.
        mounts: text of /proc/self/mountinfo.
    """
    best, found = -1, ""
    for line in mounts.splitlines():
        before, _, behind = line.partition(" - ")
        words = before.split()
        if len(words) < 5 or not behind:
            continue
        point = Path(words[4].replace("\\040", " "))
        # The later of two at the same place lies above the other.
        if folder.is_relative_to(point) and len(point.parts) >= best:
            best, found = len(point.parts), behind.split()[0]
    return found


def _refusal(facts: StorageFacts, checkpoint_bytes: int | None) -> Finding:
    number = facts.refused
    assert number is not None
    wanted = (
        "a file" if checkpoint_bytes is None else f"a checkpoint of {in_units(checkpoint_bytes)}"
    )
    if number == errno.EDQUOT:
        return Finding(
            NAME,
            "fail",
            f"{facts.folder}: the quota of this user has no room for {wanted}",
            "remove files (the commands quota or lfs quota list them), have it raised, or set "
            "--runs_dir on another disk",
        )
    if number == errno.ENOSPC:
        return Finding(
            NAME,
            "fail",
            f"{facts.folder}: the disk has no room for {wanted}",
            "free space, or set --runs_dir on a larger disk",
        )
    return Finding(
        NAME,
        "fail",
        f"{facts.folder} cannot be written to: {os.strerror(number)}",
        "correct its rights, or set --runs_dir where this user may write",
    )
