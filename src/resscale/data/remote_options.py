"""How patiently remote shards are read."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resscale.errors import UserInputError

# Of the system, not of the seeded generators: ranks that fail together must not return together.
_JITTER = random.SystemRandom()


@dataclass(frozen=True)
class RemoteOptions:
    """How remote files are read.

    Args:
        connect_timeout_s: seconds until a server must have answered a request.
        read_timeout_s: seconds without a byte after which a connection counts as broken.
        give_up_s: seconds without any new byte after which an error is raised.
        first_wait_s: seconds before the second try; doubled for each further one.
        most_wait_s: most seconds before a try.
        storage: fsspec's options by protocol: `{"s3": {"endpoint_url": "http://..."}}`.
    """

    connect_timeout_s: float = 20.0
    read_timeout_s: float = 30.0
    give_up_s: float = 300.0
    first_wait_s: float = 0.1
    most_wait_s: float = 30.0
    storage: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("connect_timeout_s", "read_timeout_s", "first_wait_s", "most_wait_s"):
            if not getattr(self, name) > 0:
                raise UserInputError(f"{name}={getattr(self, name)} must be above 0 seconds.")


def wait_before(attempt: int, options: RemoteOptions, asked_s: float, draw: float) -> float:
    """Return the seconds to wait before another try.

    Args:
        attempt: tries that failed since the last byte came, from 1 up.
        options: the shortest and the longest wait.
        asked_s: what the server asked for (Retry-After); 0 where it did not. Kept up to the
            longest wait.
        draw: uniform in [0, 1): spreads those that failed together over half of the wait.
    """
    doubled = options.first_wait_s * 2.0 ** min(attempt - 1, 30)
    waited = min(options.most_wait_s, doubled) * (0.5 + draw / 2)
    return max(waited, min(asked_s, options.most_wait_s))


def draw_wait(attempt: int, options: RemoteOptions, asked_s: float) -> float:
    """Return `wait_before` with a draw of the system's."""
    return wait_before(attempt, options, asked_s, _JITTER.random())
