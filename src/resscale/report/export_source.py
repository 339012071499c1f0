"""What `resscale export` starts from: a run, a checkpoint or a file of weights → a `Source`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from resscale.errors import DataFormatError, UserInputError, nearest
from resscale.models.weights_files import ENTRIES, find_state_dict, read_weights
from resscale.models.weights_safe import load_without_code
from resscale.training.checkpoint import STATE_KEY
from resscale.training.checkpoint_folder import find_newest_valid, newest_first
from resscale.training.checkpoint_seal import seal_holds
from resscale.training.ema_checkpoint import EMA_KEY
from resscale.training.rundir import RunDir

# Our name for averaged weights, then timm's.
_EMA_ENTRIES = (EMA_KEY, "state_dict_ema")


@dataclass(frozen=True)
class Source:
    """Weights, and what is known of how they came about.

    Args:
        path: the file or DeepSpeed folder that holds them.
        raw: the weights as they were trained, by the keys of the file.
        averaged: the averaged (EMA) weights likewise; None where the file has none.
        state: what resscale wrote beside the weights; empty in files of others.
        config: the effective configuration of the run; empty where it is not known.
        run: the run directory that the checkpoint lies in, if it lies in one.
    """

    path: Path
    raw: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor] | None
    state: Mapping[str, Any]
    config: Mapping[str, Any]
    run: RunDir | None

    def weights(self, *, averaged: bool) -> Mapping[str, Tensor]:
        """Return the averaged weights, or the raw ones.

        Raises:
            UserInputError: the averaged ones are asked for, and there are none.
        """
        if not averaged:
            return self.raw
        if self.averaged is None:
            raise UserInputError(
                f"--ema true: {self.path} has no averaged weights (no {_EMA_ENTRIES[0]!r} in it). "
                f"Leave --ema out for the raw ones, or name a checkpoint of a run with EMA."
            )
        return self.averaged


def read_source(asked: Path) -> Source:
    """Read what the user names, without executing anything in it.

    Args:
        asked: a run directory, a checkpoint, a DeepSpeed folder, or a file of weights.

    Raises:
        UserInputError: nothing is there, or no weights are in it.
        DataFormatError: damaged, or readable only by executing a pickle.
    """
    path, run = find_weights(asked)
    file = read_weights(path)
    if path.is_file() and seal_holds(path) is False:
        raise DataFormatError(
            f"{path} is damaged: its bytes are not those that its SHA-256 was taken of. Name "
            f"another checkpoint of the run, or copy it again."
        )
    # Only a file of torch's with an entry for its weights has anything else beside them.
    content = load_without_code(path) if file.entry in ENTRIES else {}
    state = _mapping(content.get(STATE_KEY))
    averaged = next((content[name] for name in _EMA_ENTRIES if content.get(name)), None)
    config = _mapping(state.get("config"))
    if not config and state and run is not None:
        # Written without resscale's command line: the run may still say.
        config = _read_config(run)
    return Source(
        path=path,
        raw=file.tensors,
        averaged=None if averaged is None else find_state_dict(averaged, path)[0],
        state=state,
        config=config,
        run=run,
    )


def find_weights(asked: Path) -> tuple[Path, RunDir | None]:
    """Return the file or DeepSpeed folder that a name stands for, and its run directory if any.

    A run stands for its best.ckpt; where there is none, for its newest whole checkpoint.

    Raises:
        UserInputError: nothing is there, or no weights are in it.
    """
    if not asked.exists():
        siblings = [str(p) for p in asked.parent.iterdir()] if asked.parent.is_dir() else []
        raise UserInputError(
            f"there is no {asked}; name a run directory, a checkpoint, a DeepSpeed folder or a "
            f"file of weights.{nearest(str(asked), siblings)}"
        )
    if asked.is_file():
        folder = asked.absolute().parent
        inside = folder.name == "checkpoints" and _is_run(folder.parent)
        return asked, RunDir(folder.parent) if inside else None
    if asked.name == "checkpoints" and newest_first(asked):
        asked = asked.parent
    if not _is_run(asked):
        _check_deepspeed(asked)
        return asked, None
    run = RunDir(asked)
    best = run.checkpoints / "best.ckpt"
    chosen = best if best.exists() else find_newest_valid(run)
    if chosen is None:
        raise UserInputError(
            f"{run.checkpoints} holds no whole checkpoint; name another run, or train first with "
            f"`resscale fit`."
        )
    return chosen, run


def _is_run(folder: Path) -> bool:
    files = RunDir(folder)
    return files.config.is_file() or bool(newest_first(files.checkpoints))


def _check_deepspeed(folder: Path) -> None:
    """Refuse a folder that is neither a run nor DeepSpeed's; the reader looks closer."""
    if any(folder.glob("*_states.pt")) or any(folder.glob("*/*_states.pt")):
        return
    runs = sorted(child for child in folder.iterdir() if child.is_dir() and _is_run(child))
    example = f" Did you mean {str(runs[0])!r}?" if runs else ""
    raise UserInputError(
        f"{folder} is neither a run directory (no checkpoints/ in it) nor a DeepSpeed checkpoint "
        f"(no *_model_states.pt); name one of these, or a file.{example}"
    )


def _read_config(run: RunDir) -> Mapping[str, Any]:
    try:
        return _mapping(yaml.safe_load(run.config.read_text()))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataFormatError(
            f"{run.config} is not valid YAML ({' '.join(str(error).split())}); a run's "
            f"configuration is as `resscale fit` wrote it. Restore the file."
        ) from error


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
