"""Several runs as one job array: what each of them has of its own."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resscale.errors import UserInputError

_MAX_TASKS = 1000
_OPEN, _CLOSE = "[{(", "]})"


@dataclass(frozen=True)
class SweepTask:
    """A run of the sweep.

    Args:
        number: its place in the array.
        label: what it has of its own, fit for a folder's name.
        arguments: the same, for `resscale fit`.
    """

    number: int
    label: str
    arguments: tuple[str, ...]


def plan_sweep(sweeps: Sequence[str]) -> list[SweepTask]:
    """Return every combination of the values of `KEY=a,b,c`; the last key varies fastest.

    Args:
        sweeps: one for each key.

    Raises:
        UserInputError: not of this form, a value or key twice, or more combinations than are sane.
    """
    axes = [_parse(text) for text in sweeps]
    twice = [key for key, count in Counter(key for key, _ in axes).items() if count > 1]
    if twice:
        raise UserInputError(
            f"--sweep {twice[0]} is given twice: name all of its values in one of them."
        )
    combinations = list(
        itertools.product(*([(key, value) for value in values] for key, values in axes))
    )
    if len(combinations) > _MAX_TASKS:
        raise UserInputError(
            f"--sweep makes {len(combinations)} runs, and {_MAX_TASKS} is the most: leave values "
            f"out, or submit parts of it."
        )
    digits = len(str(len(combinations) - 1))
    return [
        SweepTask(
            number,
            f"{number:0{digits}d}-{'-'.join(_label(key, value) for key, value in pairs)}",
            tuple(f"--{key}={value}" for key, value in pairs),
        )
        for number, pairs in enumerate(combinations)
    ]


def write_arguments(folder: Path, task: SweepTask, more: Sequence[str]) -> Path:
    """Write a task's own arguments where the batch script looks for them, one a line.

    Args:
        folder: of the sweep.
        task: one of its runs.
        more: further arguments, such as its run directory.

    Raises:
        UserInputError: an argument with a line break in it.
    """
    words = [*task.arguments, *more]
    broken = [word for word in words if "\n" in word]
    if broken:
        raise UserInputError(
            f"--sweep: {broken[0]!r} has a line break in it; write it on one line."
        )
    target = folder / f"{task.number}.args"
    target.write_text("".join(f"{word}\n" for word in words))
    return target


def _parse(text: str) -> tuple[str, list[str]]:
    key, equals, listed = text.partition("=")
    key = key.removeprefix("--").strip()
    values = _split(listed)
    if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key) or not all(values):
        raise UserInputError(
            f"--sweep {text!r} must read KEY=a,b,c, such as model.optimizer.lr=0.1,0.2 or "
            f"seed_everything=0,1,2 or config=a.yaml,b.yaml."
        )
    if len(set(values)) < len(values):
        raise UserInputError(f"--sweep {text!r} names a value twice: leave one of them out.")
    if key in ("run_dir", "runs_dir", "ckpt_path"):
        raise UserInputError(
            f"--sweep {key}: each run of a sweep has a directory of its own already; sweep what "
            f"is trained."
        )
    return key, values


def _split(text: str) -> list[str]:
    """Split at commas that stand in no bracket: `[30,60],[40,80]` are two values."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in _OPEN) - (letter in _CLOSE)
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def _label(key: str, value: str) -> str:
    name = Path(value).stem if key == "config" else f"{key.rpartition('.')[2]}={value}"
    return re.sub(r"[^\w.=+]+", "_", name)[:40].strip("_")
