"""What each rank is doing, in a small record that outlives it: the step, the phase, since when.

A rank writes some bytes of shared memory each time it enters a phase: no system call, no file
system, no device. Whoever is on the same machine reads them even after a kill -9. The watchdog
copies them into the run directory every few seconds, for the other machines.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import mmap
import os
import socket
import struct
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch import Trainer

_MAGIC = b"resscale"
_VERSION = 1
# magic, version, rank, process id, life, machine, host
_HEADER = struct.Struct("<8sIiI16s64s64s")
# beats, step, phase, state, time of entering in seconds since 1970, beats again: a reader that sees
# two different numbers of beats came in the middle of a write.
_STATE = struct.Struct("<QqBB6xdQ")
_STATE_AT = _HEADER.size
_SIZE = _STATE_AT + _STATE.size
_READS = 5
_SWEPT_AFTER_S = 600.0

# Not a mapped file of the run directory: a page of it that is just being written back, while a
# checkpoint keeps the disk busy, would make the next write, and so the training step, wait.
_SHARED_MEMORY = Path("/dev/shm")


class Phase(enum.IntEnum):
    """What a rank does, in the order of a training step."""

    START = 0
    DATA = 1
    FORWARD = 2
    BACKWARD = 3
    SYNC = 4
    SAVE = 5
    EVALUATE = 6

    def __str__(self) -> str:
        return self.name.lower()


class State(enum.IntEnum):
    """How it goes with a rank."""

    RUNNING = 0
    FAILED = 1
    ENDED = 2


_RUNNING = int(State.RUNNING)


@dataclass(frozen=True)
class Record:
    """What a rank's record says.

    Args:
        rank: global rank.
        pid: its process.
        life: names this start of the run; a restart has another.
        machine: where process ids mean the same.
        host: the machine's name.
        beats: phases entered since the start; at the same place of the program, equal on all ranks.
        step: optimizer steps done.
        phase: what it does.
        state: how it goes with it.
        entered_s: when it entered the phase, in seconds since 1970 by its own clock.
    """

    rank: int
    pid: int
    life: str
    machine: str
    host: str
    beats: int
    step: int
    phase: Phase
    state: State
    entered_s: float

    @property
    def is_gone(self) -> bool:
        """Its process is not there any more, as far as this machine can tell."""
        return self.machine == this_machine() and not is_alive(self.pid)


class RankRecord:
    """This rank's own record.

    Args:
        run_dir: the run directory.
        life: names this start of the run, up to 16 characters.
        rank: global rank.
    """

    def __init__(self, run_dir: Path, life: str, rank: int) -> None:
        self.published = _published(run_dir, rank)
        self.published.parent.mkdir(parents=True, exist_ok=True)
        self._path = _live(run_dir, life, rank)
        header = _HEADER.pack(
            _MAGIC,
            _VERSION,
            rank,
            os.getpid(),
            life.encode(),
            this_machine().encode(),
            socket.gethostname().encode()[:64],
        )
        _sweep(self._path.parent)
        try:
            self._map = _map_new_file(self._path, header + bytes(_STATE.size))
        except OSError:
            # The machine's shared memory is full: readers look into the run directory next.
            self._path = self.published
            self._map = _map_new_file(self._path, header + bytes(_STATE.size))
        self._closing = threading.Lock()
        self._closed = False
        self._step = 0
        self._phase = Phase.START
        self.beats = 0
        self.enter(Phase.START, 0)
        self.publish()

    @property
    def phase(self) -> Phase:
        """The phase entered last."""
        return self._phase

    @property
    def step(self) -> int:
        """Optimizer steps done when the phase was entered."""
        return self._step

    def enter(self, phase: Phase, step: int | None = None) -> None:
        """Note that a phase begins.

        Args:
            phase: which.
            step: optimizer steps done; None: as many as at the phase before.
        """
        if step is not None:
            self._step = step
        self._phase = phase
        self.beats = beats = self.beats + 1
        _STATE.pack_into(
            self._map, _STATE_AT, beats, self._step, phase, _RUNNING, time.time(), beats
        )

    def enter_data(self) -> None:
        """Note that the rank begins to wait for a batch."""
        self.enter(Phase.DATA)

    def publish(self) -> None:
        """Copy the record into the run directory, for other machines; any thread may."""
        with self._closing:
            if not self._closed:
                self._publish()

    def close(self, state: State) -> None:
        """Note how the rank ended. A record of a rank that ended well is removed."""
        with self._closing:
            self._closed = True
            beats = self.beats
            _STATE.pack_into(
                self._map, _STATE_AT, beats, self._step, self._phase, state, time.time(), beats
            )
            self._publish()
            if self._path != self.published:
                self._path.unlink(missing_ok=True)
            if state == State.ENDED:
                self.published.unlink(missing_ok=True)
                # Not where other ranks' records, or the story of a failure, are left.
                with contextlib.suppress(OSError):
                    self.published.parent.rmdir()

    def _publish(self) -> None:
        if self._path == self.published:
            return
        # A full disk ends training when a checkpoint is written, not here.
        with contextlib.suppress(OSError):
            descriptor = os.open(self.published, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, self._map[:], 0)
            finally:
                os.close(descriptor)


def enter_phase(trainer: Trainer, phase: Phase) -> None:
    """Note a phase in the record of the trainer's rank, if it keeps one."""
    record: RankRecord | None = getattr(trainer, "rank_record", None)
    if record is not None:
        record.enter(phase, trainer.global_step)


def read_record(run_dir: Path, life: str, rank: int) -> Record | None:
    """Return a rank's record; None where there is none, or none of this life that can be read."""
    for path in (_live(run_dir, life, rank), _published(run_dir, rank)):
        record = read_record_file(path)
        if record is not None and record.life == life and record.rank == rank:
            return record
    return None


def processes_on_this_machine(run_dir: Path, life: str) -> dict[int, int]:
    """Return the ranks of this life whose records lie in this machine's memory: rank -> pid."""
    example = _live(run_dir, life, 0)
    found = (
        read_record_file(path) for path in example.parent.glob(example.name.removesuffix("0") + "*")
    )
    here = this_machine()
    return {r.rank: r.pid for r in found if r and r.life == life and r.machine == here}


def remove_record(run_dir: Path, life: str, rank: int) -> None:
    """Remove what a rank that was killed has left in this machine's memory."""
    live = _live(run_dir, life, rank)
    if live != _published(run_dir, rank):
        live.unlink(missing_ok=True)


@functools.cache
def this_machine() -> str:
    """Return a name of where process ids mean the same: this start of this system, or container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"[:64]
    except OSError:
        return socket.gethostname()[:64]


def read_record_file(path: Path) -> Record | None:
    """Return the record in a file; None where there is none that can be read."""
    for _ in range(_READS):
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if len(data) != _SIZE:
            return None
        magic, version, rank, pid, life, machine, host = _HEADER.unpack_from(data)
        if (magic, version) != (_MAGIC, _VERSION):
            return None
        beats, step, phase, state, entered_s, again = _STATE.unpack_from(data, _STATE_AT)
        if beats == again:
            names = (_text(life), _text(machine), _text(host))
            return Record(rank, pid, *names, beats, step, Phase(phase), State(state), entered_s)
    return None


def _map_new_file(path: Path, content: bytes) -> mmap.mmap:
    """Map a file that holds `content`, in the place of an older one."""
    # Written whole before it is mapped: a page without a block behind it could not be filled on a
    # full disk, and the write would end the process. A new file, not the old one cut to length: who
    # has that one mapped must not be ended by it.
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    with temporary.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), len(content))
    temporary.replace(path)
    return mapped


def _sweep(folder: Path) -> None:
    """Remove what runs that were killed as a whole have left in this machine's memory."""
    if folder != _SHARED_MEMORY:
        return
    for path in folder.glob("resscale-*-rank-*"):
        record = read_record_file(path)
        # The other ranks of a run that fails just now still want to read it.
        if record and record.is_gone and time.time() - record.entered_s > _SWEPT_AFTER_S:
            with contextlib.suppress(OSError):
                path.unlink()


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode(errors="replace")


def _published(run_dir: Path, rank: int) -> Path:
    return run_dir / "ranks" / f"rank-{rank}"


def _live(run_dir: Path, life: str, rank: int) -> Path:
    if os.access(_SHARED_MEMORY, os.W_OK):
        return _SHARED_MEMORY / f"resscale-{life}-rank-{rank}"
    return _published(run_dir, rank)


def is_alive(pid: int) -> bool:
    """Tell whether this machine has a process of this id that has not ended."""
    try:
        os.kill(pid, 0)
        # Behind the name in brackets stands Z for one whose parent has not asked how it ended.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:  # another user's, or a system without /proc
        return True
