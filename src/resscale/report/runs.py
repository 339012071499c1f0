"""Finds run directories and reads what a report says about each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from resscale.errors import DataFormatError, UserInputError, nearest
from resscale.report.metrics import Curves, epoch_curves, rates, read_rows
from resscale.training.rundir import RunDir

_NUMBERS = ("epoch", "val_top1", "best_val_top1", "num_parameters", "num_macs", "bad_samples")
Config = dict[str, Any]  # dotted key -> value that is no mapping


@dataclass(frozen=True)
class Run:
    """One run as its directory tells it.

    Args:
        path: the directory, as it was named.
        label: the name that the user gave it, if any.
        config: the effective configuration by dotted keys; empty where there is no config.yaml.
        summary: summary.json; empty where there is none yet.
        curves: of metrics.csv, one value per epoch.
        images_per_s: over the whole run; None where nothing is logged yet.
        data_wait_pct: percentage of that time spent waiting for data.
        bad_samples: damaged samples that were replaced.
        resumed_at: the global steps at which the run went on.
        last_written: date and time of the newest entry.
    """

    path: Path
    label: str | None
    config: Config
    summary: Mapping[str, Any]
    curves: Curves
    images_per_s: float | None
    data_wait_pct: float | None
    bad_samples: int
    resumed_at: tuple[int, ...]
    last_written: str

    @property
    def seed(self) -> str:
        """The seed, `-` where it is not recorded."""
        return str(self.config.get("seed_everything", "-"))

    @property
    def is_done(self) -> bool:
        """Whether the run reached its end."""
        return self.summary.get("status") == "done"

    @property
    def epochs_done(self) -> int:
        """Epochs behind it; the one under way does not count."""
        # The table is ahead of the summary, which is written at validations.
        logged = max(self.curves["train_loss"], default=1)
        return max(int(self.summary.get("epoch") or 0), logged - 1)

    @property
    def epochs_planned(self) -> int | None:
        """Epochs it was to have, None where the configuration sets none."""
        planned = self.config.get("trainer.max_epochs")
        return planned if isinstance(planned, int) and planned > 0 else None

    @property
    def state(self) -> str:
        """The status in words, such as `preempted at epoch 7 of 20`."""
        if self.is_done:
            return "done"
        of = f" of {self.epochs_planned}" if self.epochs_planned else ""
        return f"{self.summary.get('status', 'no summary yet')} at epoch {self.epochs_done}{of}"


def find_runs(arguments: Sequence[str]) -> list[tuple[str | None, Path]]:
    """Return label and directory of each run that the arguments name, each directory once.

    Args:
        arguments: run directories, folders of runs, or `LABEL=` before either.

    Raises:
        UserInputError: one is no run and holds none, or one run has two labels.
    """
    found: dict[Path, tuple[str | None, Path]] = {}
    for argument in arguments:
        label, path = _split_label(argument)
        for run in _runs_at(path):
            known = found.setdefault(run.resolve(), (label, run))
            if known[0] != label:
                raise UserInputError(
                    f"{run} is named twice, as {known[0] or 'itself'!r} and {label or 'itself'!r}; "
                    f"a run belongs to one curve. Name it once."
                )
    return list(found.values())


def load_run(path: Path, label: str | None = None) -> Run:
    """Read a run directory.

    Args:
        path: the directory.
        label: the name that the user gave it, if any.

    Raises:
        DataFormatError: its config.yaml, metrics.csv or summary.json is damaged.
    """
    files = RunDir(path)
    summary = _read_summary(files)
    rows = read_rows(files.metrics)
    images_per_s, data_wait_pct = rates(rows)
    written = [
        file.stat().st_mtime
        for file in (files.config, files.metrics, files.summary, files.events)
        if file.exists()
    ]
    return Run(
        path=path,
        label=label,
        config=_read_config(files.config),
        summary=summary,
        curves=epoch_curves(rows),
        images_per_s=images_per_s,
        data_wait_pct=data_wait_pct,
        # The summary is written at validations, the ledger at once.
        bad_samples=max(int(summary.get("bad_samples") or 0), len(files.read_events("bad_sample"))),
        resumed_at=tuple(int(entry.get("step", 0)) for entry in files.read_events("resumed")),
        last_written=time.strftime("%Y-%m-%d %H:%M", time.localtime(max(written))),
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> Config:
    """Return a nested mapping by dotted keys; an empty mapping counts as null."""
    flat: Config = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = None if isinstance(value, Mapping) else value
    return flat


def _read_summary(files: RunDir) -> Mapping[str, Any]:
    summary: object = files.read_summary()
    if isinstance(summary, Mapping):
        wrong = [k for k in _NUMBERS if not isinstance(summary.get(k) or 0, int | float)]
        if not wrong:
            return summary
        fault = f"has {wrong[0]}={summary[wrong[0]]!r}, which is no number"
    else:
        fault = "is no mapping of names to values"
    raise DataFormatError(
        f"{files.summary} {fault}; a run's summary is as `resscale fit` wrote it. Restore the "
        f"file, or leave the run out."
    )


def _read_config(path: Path) -> Config:
    if not path.exists():
        return {}
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataFormatError(
            f"{path} is not valid YAML ({' '.join(str(error).split())}); a run's configuration is "
            f"as `resscale fit` wrote it. Restore the file, or leave the run out."
        ) from error
    if not isinstance(config, Mapping):
        raise DataFormatError(
            f"{path} is no mapping of options to values, as a run's configuration is. Restore the "
            f"file, or leave the run out."
        )
    return flatten(config)


def _split_label(argument: str) -> tuple[str | None, Path]:
    """Split `label=RUN`; a path that is there and has a `=` in it is a path."""
    label, equals, path = argument.partition("=")
    if not equals or Path(argument).exists():
        return None, Path(argument)
    if not label.strip() or not path:
        raise UserInputError(f"{argument!r} must read LABEL=RUN; both a name and a run are needed.")
    return " ".join(label.split()), Path(path)


def _runs_at(path: Path) -> list[Path]:
    """Return the run at a path, or the runs that are its children."""
    if _is_run(path):
        return [path]
    children = sorted(child for child in path.iterdir() if _is_run(child)) if path.is_dir() else []
    if children:
        return children
    hint = nearest(str(path), _runs_beside(path))
    if not path.exists():
        raise UserInputError(
            f"there is no run {path}; name a directory that `resscale fit` made.{hint}"
        )
    if path.is_file():
        raise UserInputError(
            f"{path} is a file; name a run directory, or the folder that holds several: "
            f"{path.parent}"
        )
    raise UserInputError(
        f"{path} is no run directory and holds none: a run has a config.yaml, metrics.csv or "
        f"summary.json. Name a directory that `resscale fit` made.{hint}"
    )


def _runs_beside(path: Path) -> list[str]:
    if not path.parent.is_dir():
        return []
    return [str(other) for other in sorted(path.parent.iterdir()) if _is_run(other)]


def _is_run(path: Path) -> bool:
    files = RunDir(path)
    return any(file.is_file() for file in (files.config, files.metrics, files.summary))
