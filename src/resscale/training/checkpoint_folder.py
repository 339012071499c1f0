"""The checkpoints of a run as files: the newest whole one, the links to them, what may go."""

from __future__ import annotations

from pathlib import Path

from resscale.training.checkpoint_seal import is_whole
from resscale.training.rundir import RunDir


def newest_first(folder: Path) -> list[Path]:
    """Return the numbered checkpoints of a folder, the furthest in training first."""
    return sorted(folder.glob("epoch-*-step-*.ckpt"), key=lambda path: path.name, reverse=True)


def find_newest_valid(run_dir: RunDir) -> Path | None:
    """Return the newest whole checkpoint of a run; a torn one falls back to the one before."""
    return next((path for path in newest_first(run_dir.checkpoints) if is_whole(path)), None)


def publish(path: Path, keep_last: int, best: bool) -> None:
    """Point `last.ckpt`, and `best.ckpt` where it is the best, at a complete file; drop old ones.

    Args:
        path: the file.
        keep_last: how many to keep of it and those before it. One behind it is torn, as training
            went on from before it: it does not count, and is overwritten when training gets there.
        best: the file is the best so far.
    """
    _link(path, path.with_name("last.ckpt"), symbolic=True)
    if best:
        _link(path, path.with_name("best.ckpt"))
    up_to_it = [other for other in newest_first(path.parent) if other.name <= path.name]
    for old in up_to_it[keep_last:]:
        old.unlink(missing_ok=True)


def drop_oldest(folder: Path, keep_last: int) -> bool:
    """Remove the checkpoint that the next `publish` would drop; tell whether there was one.

    The newest stays, and must be whole: it is what training goes on from if the save fails.
    """
    paths = newest_first(folder)
    if len(paths) < max(2, keep_last) or not is_whole(paths[0]):
        return False
    paths[-1].unlink(missing_ok=True)
    return True


def remove_leftovers(folder: Path) -> None:
    """Remove what a kill left half written. Only while nobody writes there."""
    for left in folder.glob("*.ckpt.tmp"):
        left.unlink(missing_ok=True)


def _link(source: Path, target: Path, *, symbolic: bool = False) -> None:
    """Point `target` at `source` in one step; a hard link outlives the source's name."""
    temporary = target.with_name(target.name + ".tmp")
    temporary.unlink(missing_ok=True)
    if symbolic:
        temporary.symlink_to(source.name)
    else:
        try:
            temporary.hardlink_to(source)
        except OSError:  # file systems without hard links
            temporary.write_bytes(source.read_bytes())
    temporary.replace(target)
