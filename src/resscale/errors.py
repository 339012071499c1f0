"""Everything resscale raises on purpose, and the exit code each leads to.

```
ResscaleError           1   a bug, unless a subclass says otherwise
├── UserInputError      2   the user's input: one message, no traceback
│   ├── DataFormatError 2   shards, manifests or sources that are not what they should be
│   └── CheckpointError 2   a checkpoint cannot be written; all ranks stop at the same step
├── RemoteError        69   a server of shards has not answered for long (EX_UNAVAILABLE)
├── TrainingStopped    70   a guard ended training (non-finite loss, data errors over budget)
└── Preempted          75   stopped on request, checkpoint saved, resume wanted (EX_TEMPFAIL)
```

A message states the value, the rule and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ResscaleError(Exception):
    """Base of all errors raised by resscale; `exit_code` is the process's exit status."""

    exit_code = 1


class UserInputError(ResscaleError):
    """The user asked for something that cannot be done; the message says what to do instead."""

    exit_code = 2


class DataFormatError(UserInputError):
    """A shard, manifest, index or data source is missing, damaged or of the wrong form."""


class CheckpointError(UserInputError):
    """A checkpoint cannot be written: no space, or no right to; those before it are kept."""


class RemoteError(ResscaleError):
    """A server of shards does not answer, or not with the right bytes, after many tries.

    Nothing that the user asked for is wrong: a SLURM job goes back into the queue.
    """

    exit_code = 69


class TrainingStopped(ResscaleError):
    """A guard ended training: going on would waste the run."""

    exit_code = 70


class Preempted(ResscaleError):
    """Training stopped at a step boundary on request; the checkpoint is saved."""

    exit_code = 75


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the closest of `choices`, or an empty string."""
    matches = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
