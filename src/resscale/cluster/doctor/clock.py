"""How far the clocks of nodes are apart."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from resscale.cluster.doctor.finding import Finding, Rank

NAME = "clock"
# Owners of run directories, time limits and the order of log lines are compared by the clock.
_WARN_S = 1.0
# Beyond, SLURM's own credentials (munge) are refused before long: they live for 300 s.
_FAIL_S = 60.0
_TRIES = 8
_TIMEOUT_S = 5.0
_TIME = struct.Struct("!d")


@dataclass(frozen=True)
class Offset:
    """A clock against rank 0's.

    Args:
        ahead_s: seconds; below 0: behind.
        error_s: how far off that may be.
    """

    ahead_s: float
    error_s: float


class ClockServer:
    """Tells the time to whoever connects; start it by `with`."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("", 0))
        self._listener.listen(128)
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> ClockServer:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        # A thread that waits in accept() does not hear of close() alone.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=_answer, args=(connection,), daemon=True).start()


def measure_offset(address: str, port: int) -> Offset:
    """Return how far this machine's clock is ahead of another's.

    Args:
        address: of a `ClockServer`.
        port: of it.

    Raises:
        OSError: it does not answer.
    """
    with socket.create_connection((address, port), timeout=_TIMEOUT_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return min((_ask(connection) for _ in range(_TRIES)), key=lambda offset: offset.error_s)


def judge_clocks(offsets: Mapping[Rank, Offset]) -> list[Finding]:
    """Judge how far the clocks are apart.

    Args:
        offsets: of one rank of each host but rank 0's.
    """
    if not offsets:
        return []
    findings = []
    for rank, offset in offsets.items():
        # What may be the measurement's own error is not held against a clock.
        apart = abs(offset.ahead_s) - offset.error_s
        if apart <= _WARN_S:
            continue
        way = "ahead of" if offset.ahead_s > 0 else "behind"
        findings.append(
            Finding(
                NAME,
                "fail" if apart > _FAIL_S else "warn",
                f"the clock of {rank.host} is {abs(offset.ahead_s):,.1f} s {way} rank 0's",
                f"have the administrator see to chrony or ntpd on {rank.host}",
            )
        )
    largest = max(abs(offset.ahead_s) for offset in offsets.values())
    error = max(offset.error_s for offset in offsets.values())
    return findings or [
        Finding(
            NAME,
            "ok",
            f"{len(offsets) + 1} hosts within {largest * 1e3:,.2f} ms (± {error * 1e3:,.2f} ms)",
        )
    ]


def _answer(connection: socket.socket) -> None:
    with connection:
        connection.settimeout(_TIMEOUT_S)
        try:
            while connection.recv(1):
                connection.sendall(_TIME.pack(time.time()))
        except OSError:
            return


def _ask(connection: socket.socket) -> Offset:
    before = time.time()
    connection.sendall(b"?")
    answer = b""
    while len(answer) < _TIME.size:
        part = connection.recv(_TIME.size - len(answer))
        if not part:
            raise ConnectionError("the clock's server has gone")
        answer += part
    after = time.time()
    there: float = _TIME.unpack(answer)[0]
    # The answer was given at some moment between; the middle is off by half of it at most.
    return Offset((before + after) / 2 - there, (after - before) / 2)
