"""Naming runs, and finding the one to go on with."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resscale.errors import UserInputError
from resscale.training.rundir import RunDir

# Not part of what is trained: a run may go on elsewhere, on more ranks, with other displays.
_PLACES = (
    "config",
    "run_dir",
    "ckpt_path",
    "runs_dir",
    "output",
    "num_threads",
    "expected",
    "device_prefetch",
    "profile",
)
_TRAINER_PLACES = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "default_root_dir",
    "callbacks",
    "logger",
    "enable_progress_bar",
    "log_every_n_steps",
)


def config_digest(config: Mapping[str, Any]) -> str:
    """Return six hex digits of everything in a configuration that decides what is trained."""
    kept = {name: value for name, value in config.items() if name not in _PLACES}
    trainer = dict(kept.get("trainer") or {})
    kept["trainer"] = {k: v for k, v in trainer.items() if k not in _TRAINER_PLACES}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:6]


def choose_run_dir(
    runs_dir: Path,
    name: str,
    digest: str,
    *,
    job_id: str | None = None,
    resume: bool = False,
    is_restart: bool = False,
    shared: bool = False,
) -> Path:
    """Return the directory of a new run, or of the unfinished one to go on with.

    Args:
        runs_dir: where runs lie.
        name: the configuration's name.
        digest: `config_digest` of it.
        job_id: name of the job; it stands where the date would otherwise.
        resume: go on with the job's own run, if it has begun one, else with the newest unfinished
            one of the same configuration, if there is one.
        is_restart: SLURM has requeued the job: its own run, and never what another has left.
        shared: ranks that a launcher has started choose each for itself, and must come to the
            same: by the job's name alone.
    """
    stamp = job_id or time.strftime("%Y%m%d-%H%M%S")
    path = runs_dir / f"{name}-{stamp}-{digest}"
    if is_restart or (resume and RunDir(path).summary.exists()):
        return path
    if resume:
        found = sorted(
            (path for path in runs_dir.glob(f"{name}-*-{digest}*") if _unfinished(path)),
            key=lambda path: RunDir(path).summary.stat().st_mtime,
        )
        if found:
            return found[-1]
    number = 2
    while path.exists() and not shared:
        path = runs_dir / f"{name}-{stamp}-{digest}-{number}"
        number += 1
    return path


def refuse_used(run_dir: Path) -> None:
    """Refuse to start a new run in a directory that holds one.

    Raises:
        UserInputError: it holds checkpoints or a summary.
    """
    if RunDir(run_dir).summary.exists():
        raise UserInputError(
            f"{run_dir} holds a run already; add --ckpt_path auto to go on with it, or choose "
            f"another --run_dir."
        )


def _unfinished(path: Path) -> bool:
    status = RunDir(path).read_summary().get("status")
    return status is not None and status != "done"
