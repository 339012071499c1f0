"""A rank's record: read by others, after a kill too, and never mistaken for another's."""

import os
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from resscale.training import phase
from resscale.training.phase import (
    Phase,
    RankRecord,
    Record,
    State,
    enter_phase,
    is_alive,
    processes_on_this_machine,
    read_record,
    remove_record,
    this_machine,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

LIFE = "0123456789abcdef"


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of the machine's shared memory."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(phase, "_SHARED_MEMORY", folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def read(run: Path, rank: int = 0) -> Record:
    record = read_record(run, LIFE, rank)
    assert record is not None
    return record


def in_a_process(function: Callable[[], object]) -> None:
    """Run a function in a process of its own that is then killed."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL


def test_a_record_says_what_its_rank_entered_last(run: Path) -> None:
    own = RankRecord(run, LIFE, 3)
    own.enter(Phase.FORWARD, 7)
    own.enter_data()
    record = read(run, 3)
    assert (record.rank, record.pid, record.life) == (3, os.getpid(), LIFE)
    assert (record.phase, record.step) == (Phase.DATA, 7)
    assert record.beats == 3  # start, forward, data
    assert record.state == State.RUNNING
    assert not record.is_gone


def test_a_record_outlives_a_rank_that_is_killed(run: Path) -> None:
    in_a_process(lambda: RankRecord(run, LIFE, 1).enter(Phase.BACKWARD, 5))
    record = read(run, 1)
    assert (record.phase, record.step, record.state) == (Phase.BACKWARD, 5, State.RUNNING)
    assert record.is_gone


def test_a_rank_whose_end_nobody_has_asked_for_is_gone_all_the_same() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not is_alive(pid)
    os.waitpid(pid, 0)
    assert not is_alive(pid)
    assert is_alive(os.getpid())


def test_a_rank_of_another_machine_is_never_taken_for_gone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_process(lambda: RankRecord(run, LIFE, 1))
    monkeypatch.setattr(phase, "this_machine", lambda: "another")
    assert not read(run, 1).is_gone


def test_other_machines_read_the_copy_in_the_run_directory(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = RankRecord(run, LIFE, 0)
    own.enter(Phase.SAVE, 9)
    own.publish()
    monkeypatch.setattr(phase, "_SHARED_MEMORY", tmp_path)
    assert (read(run).phase, read(run).step) == (Phase.SAVE, 9)


def test_without_shared_memory_the_run_directory_holds_the_record_itself(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phase, "_SHARED_MEMORY", tmp_path / "none")
    RankRecord(run, LIFE, 0).enter(Phase.SYNC, 2)
    assert read(run).step == 2
    assert processes_on_this_machine(run, LIFE) == {0: os.getpid()}


def test_where_shared_memory_takes_no_more_the_run_directory_does(run: Path, memory: Path) -> None:
    (memory / f"resscale-{LIFE}-rank-0.tmp").mkdir()  # no file can be written there
    RankRecord(run, LIFE, 0).enter(Phase.SYNC, 2)
    assert read(run).step == 2


def test_a_record_of_an_earlier_life_is_not_read(run: Path) -> None:
    own = RankRecord(run, "an earlier life", 0)
    assert read_record(run, LIFE, 0) is None
    own.close(State.FAILED)
    assert read_record(run, LIFE, 0) is None


def test_where_there_is_no_record_there_is_none(run: Path) -> None:
    assert read_record(run, LIFE, 0) is None
    assert processes_on_this_machine(run, LIFE) == {}


def overwrite(run: Path, offset: int, data: bytes) -> None:
    file = run / "ranks" / "rank-0"
    content = bytearray(file.read_bytes())
    content[offset : offset + len(data)] = data
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"another"),  # not one of ours
        (8, struct.pack("<I", 2)),  # of a version to come
        (-8, struct.pack("<Q", 99)),  # in the middle of a write: the beats differ
    ],
    ids=["magic", "version", "torn"],
)
def test_a_record_that_cannot_be_trusted_is_not_read(run: Path, offset: int, data: bytes) -> None:
    RankRecord(run, LIFE, 0).close(State.FAILED)
    assert read_record(run, LIFE, 0) is not None
    size = (run / "ranks" / "rank-0").stat().st_size
    overwrite(run, offset % size, data)
    assert read_record(run, LIFE, 0) is None


@pytest.mark.parametrize("size", [0, 10])
def test_a_record_cut_short_is_not_read(run: Path, size: int) -> None:
    RankRecord(run, LIFE, 0).close(State.FAILED)
    os.truncate(run / "ranks" / "rank-0", size)
    assert read_record(run, LIFE, 0) is None


def test_a_rank_that_ended_well_leaves_nothing_behind(run: Path, memory: Path) -> None:
    first, second = RankRecord(run, LIFE, 0), RankRecord(run, LIFE, 1)
    first.close(State.ENDED)
    assert [file.name for file in (run / "ranks").iterdir()] == ["rank-1"]
    second.close(State.ENDED)
    second.publish()
    assert list(run.iterdir()) == []
    assert list(memory.iterdir()) == []


def test_a_rank_that_failed_leaves_what_it_did_in_the_run_directory(
    run: Path, memory: Path
) -> None:
    own = RankRecord(run, LIFE, 0)
    own.enter(Phase.EVALUATE, 4)
    own.close(State.FAILED)
    record = read(run)
    assert (record.state, record.phase, record.step) == (State.FAILED, Phase.EVALUATE, 4)
    assert list(memory.iterdir()) == []


def test_the_ranks_of_this_machine_are_those_of_this_life_in_its_memory(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for life, rank in ((LIFE, 11), (LIFE, 2), ("another life", 5)):
        RankRecord(run, life, rank)
    assert processes_on_this_machine(run, LIFE) == {2: os.getpid(), 11: os.getpid()}
    monkeypatch.setattr(phase, "this_machine", lambda: "another")
    assert processes_on_this_machine(run, LIFE) == {}


def test_what_runs_killed_long_ago_have_left_is_removed_by_the_next(
    run: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_process(lambda: RankRecord(run, "killed", 0))
    RankRecord(run, "lives", 0)
    RankRecord(run, LIFE, 0)
    assert len(list(memory.iterdir())) == 3  # others may still want to read what it did
    monkeypatch.setattr(phase, "_SWEPT_AFTER_S", 0.0)
    RankRecord(run, LIFE, 0)
    left = sorted(file.name for file in memory.iterdir())
    assert left == [f"resscale-{LIFE}-rank-0", "resscale-lives-rank-0"]


def test_the_record_of_a_killed_rank_can_be_removed_but_not_its_copy(
    run: Path, memory: Path
) -> None:
    in_a_process(lambda: RankRecord(run, LIFE, 1))
    remove_record(run, LIFE, 1)
    assert list(memory.iterdir()) == []
    assert read(run, 1).pid > 0


def test_a_machine_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_machine() == this_machine() != ""


def test_a_trainer_without_a_record_notes_nothing(run: Path) -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    enter_phase(trainer, Phase.SAVE)
    own = RankRecord(run, LIFE, 0)
    trainer.rank_record = own  # type: ignore[attr-defined]
    enter_phase(trainer, Phase.SAVE)
    assert (read(run).phase, read(run).step) == (Phase.SAVE, 0)
