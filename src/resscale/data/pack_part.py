"""One part of a packing: which shards a job array's task writes, and what its files are called."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass

from resscale.errors import UserInputError


@dataclass(frozen=True)
class Part:
    """Part `index` of `count`, counted from 0; without arguments the whole.

    Args:
        index: 0 to `count` - 1, as SLURM counts the tasks of `--array=0-15`.
        count: number of parts that the shards are divided into.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise UserInputError(
                f"--part {self.index}/{self.count}: parts are counted from 0, so I must lie in 0 "
                f"to N - 1; of {self.count} parts the last is {self.count - 1}/{self.count}."
            )

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read "I/N".

        Raises:
            UserInputError: another form, or I outside 0 to N - 1.
        """
        match = re.fullmatch(r"(\d{1,9})/0*([1-9]\d{0,8})", text)
        if not match:
            raise UserInputError(
                f"--part {text}: must be I/N, part I of N, counted from 0; of 16 parts 0/16 to "
                f"15/16."
            )
        return cls(int(match[1]), int(match[2]))

    @property
    def is_whole(self) -> bool:
        """There is no other part."""
        return self.count == 1

    @property
    def tag(self) -> str:
        """What the names of its files hold."""
        return f"{self.index}-of-{self.count}"

    @property
    def state_name(self) -> str:
        """File name of its state."""
        return ".pack.jsonl" if self.is_whole else f".pack-{self.tag}.jsonl"

    @classmethod
    def of_state(cls, name: str) -> Part | None:
        """Return the part whose state file has this name, None for any other file."""
        if name == WHOLE.state_name:
            return WHOLE
        match = re.fullmatch(r"\.pack-(\d+)-of-(\d+)\.jsonl", name)
        return cls(int(match[1]), int(match[2])) if match else None

    def shards(self, num_shards: int) -> range:
        """Return the shards that are this part's: every `count`-th, so that parts end together."""
        return range(self.index, num_shards, self.count)

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Part()


def temporary_name(name: str, tag: str) -> str:
    """Return a name beside a file to be, for this process alone among all of all nodes.

    Args:
        name: the file's final name.
        tag: of the part that writes it, so that whoever comes after it knows whose it was.
    """
    return f".{name}.{tag}.{socket.gethostname()}-{os.getpid()}.tmp"
