"""The watchdog sees ranks that are gone and ranks that stand still, and names the right one."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from resscale.training import phase
from resscale.training.failure import EVENT, Failure, claim
from resscale.training.phase import Phase, RankRecord, State
from resscale.training.rundir import RunDir
from resscale.training.watchdog import Watchdog, gone

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

LIFE = "0123456789abcdef"
TIMEOUT_S = 100.0


@pytest.fixture(autouse=True)
def _memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(phase, "_SHARED_MEMORY", folder)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def own(run: Path) -> Iterator[RankRecord]:
    """The record of rank 0, which is in the backward pass of step 5."""
    record = RankRecord(run, LIFE, 0)
    for entered in (Phase.DATA, Phase.FORWARD, Phase.BACKWARD):
        record.enter(entered, 5)
    yield record
    record.close(State.ENDED)


def watchdog(run: Path, own: RankRecord, timeout_s: float = TIMEOUT_S, ranks: int = 2) -> Watchdog:
    return Watchdog(run, LIFE, own, 0, ranks, timeout_s, end=lambda failure: None)


def other(run: Path, *entered: Phase, rank: int = 1) -> RankRecord:
    record = RankRecord(run, LIFE, rank)
    for one in entered:
        record.enter(one, 5)
    return record


def killed(run: Path, *entered: Phase) -> int:
    """A rank 1 that is killed behind these phases; return its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            other(run, *entered)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid


def test_while_ranks_move_all_is_well(run: Path, own: RankRecord) -> None:
    watch = watchdog(run, own)
    other(run, Phase.DATA)
    for now_s in range(0, 1000, 90):  # each pause is shorter than 100 s
        own.enter(Phase.DATA)
        assert watch.look(now_s) is None


def test_a_rank_that_stands_still_names_itself_and_the_line(run: Path, own: RankRecord) -> None:
    other(run, *[Phase.DATA] * 9)
    watch = watchdog(run, own)
    assert watch.look(0.0) is None
    assert watch.look(TIMEOUT_S - 1) is None
    failure = watch.look(TIMEOUT_S)
    assert failure is not None
    assert (failure.kind, failure.rank, failure.step) == ("hang", 0, 5)
    assert (failure.phase, failure.exit_code) == ("backward", 70)
    assert failure.message == "no progress for 100 s (hang_timeout_s=100); others wait in data"
    assert "in test_a_rank_that_stands_still_names_itself_and_the_line" in failure.traceback
    assert RunDir(run).read_events(EVENT)[0]["rank"] == 0


def test_a_rank_that_waits_for_another_leaves_it_time_to_say_where_it_is(
    run: Path, own: RankRecord
) -> None:
    other(run, Phase.DATA)
    watch = watchdog(run, own)
    watch.look(0.0)
    assert watch.look(TIMEOUT_S + 4) is None
    failure = watch.look(TIMEOUT_S + 5)
    assert failure is not None
    assert (failure.rank, failure.phase, failure.traceback) == (1, "data", "")
    assert failure.message.endswith("others wait in backward; its process does not answer")


def test_what_the_rank_to_blame_says_comes_first(run: Path, own: RankRecord) -> None:
    other(run, Phase.DATA)
    watch = watchdog(run, own)
    watch.look(0.0)
    said = Failure("hang", 1, 2, "h", 7, 5, "data", None, "stuck", "line 58", 70)
    claim(run, LIFE, said)
    assert watch.look(TIMEOUT_S + 1) == said


def test_a_rank_at_the_same_place_is_named_too(run: Path, own: RankRecord) -> None:
    other(run, Phase.DATA, Phase.FORWARD, Phase.BACKWARD)
    watch = watchdog(run, own)
    watch.look(0.0)
    failure = watch.look(TIMEOUT_S)
    assert failure is not None
    assert (failure.rank, failure.same_place) == (0, [1])


def test_a_rank_that_ended_is_not_waited_for(run: Path, own: RankRecord) -> None:
    other(run).close(State.ENDED)
    watch = watchdog(run, own)
    watch.look(0.0)
    failure = watch.look(TIMEOUT_S)
    assert failure is not None
    assert failure.rank == 0


@pytest.mark.parametrize(
    ("still_s", "said"), [(0.52, "0.52"), (3.14, "3.1"), (12.7, "13"), (1800.4, "1800")]
)
def test_a_time_without_progress_is_never_told_as_0_s(
    run: Path, own: RankRecord, still_s: float, said: str
) -> None:
    watch = watchdog(run, own, timeout_s=0.5)
    assert watch.look(0.0) is None
    failure = watch.look(still_s)
    assert failure is not None
    assert failure.message == f"no progress for {said} s (hang_timeout_s=0.5)"


def test_a_timeout_of_0_waits_for_ever(run: Path, own: RankRecord) -> None:
    watch = watchdog(run, own, timeout_s=0.0)
    assert [watch.look(now_s) for now_s in (0.0, 1e6)] == [None, None]


def test_a_rank_that_is_gone_is_named_with_what_it_did_last(run: Path, own: RankRecord) -> None:
    pid = killed(run, Phase.DATA, Phase.FORWARD)
    watch = watchdog(run, own)
    assert watch.look(0.0) is None  # whoever started it may know more, and gets 3 s to say it
    assert watch.look(2.9) is None
    failure = watch.look(3.0)
    assert failure is not None
    assert (failure.kind, failure.rank, failure.pid) == ("gone", 1, pid)
    assert (failure.step, failure.phase, failure.exit_code) == (5, "forward", 1)
    assert failure.message.startswith("its process is gone (killed, perhaps for lack of memory)")


def test_a_rank_that_failed_and_could_not_say_it_is_named(run: Path, own: RankRecord) -> None:
    (ready, began), (go_on, goes_on) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            record = other(run, Phase.SAVE)
            os.write(began, b"1")
            os.read(go_on, 1)
            record.close(State.FAILED)  # its claim, say, found the disk full
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.read(ready, 1)
    watch = watchdog(run, own)
    assert watch.look(0.0) is None
    os.write(goes_on, b"1")
    os.waitpid(pid, 0)
    assert watch.look(1.0) is None
    failure = watch.look(4.0)  # 3 s later
    assert failure is not None
    assert (failure.rank, failure.phase) == (1, "save")
    for descriptor in (ready, began, go_on, goes_on):
        os.close(descriptor)


def test_the_launcher_names_the_signal(run: Path, own: RankRecord) -> None:
    pid = killed(run, Phase.DATA)
    failure = watchdog(run, own).say_gone(1, pid, -9)
    assert (failure.rank, failure.step, failure.phase) == (1, 5, "data")
    assert failure.message.startswith("killed by SIGKILL")
    assert watchdog(run, own).look(0.0) == failure


@pytest.mark.parametrize(
    ("code", "message", "exit_code"),
    [
        (-9, "killed by SIGKILL (if nobody sent it: for lack of memory, see the kernel's log)", 1),
        (-11, "killed by SIGSEGV", 1),
        (3, "ended with exit code 3 and no word", 3),
        (None, "its process is gone (killed, perhaps for lack of memory)", 1),
    ],
)
def test_the_exit_code_says_how_a_rank_ended(
    code: int | None, message: str, exit_code: int
) -> None:
    failure = gone(2, 4, 77, code, None)
    assert failure.message == f"{message}, so there is no traceback"
    assert (failure.exit_code, failure.rank, failure.phase) == (exit_code, 2, "start")


def test_until_the_ranks_have_met_none_is_missed(run: Path) -> None:
    own = RankRecord(run, LIFE, 0)  # in its first phase: others may not have a record yet
    watch = watchdog(run, own)
    assert watch.look(0.0) is None
    killed(run, Phase.DATA)
    own.enter(Phase.START, 0)
    assert watch.look(1.0) is None
    assert watch.look(4.0) is not None


def test_the_thread_ends_the_process_once_and_stops_when_it_is_told(
    run: Path, own: RankRecord
) -> None:
    ended: list[Failure] = []
    done = threading.Event()

    def end(failure: Failure) -> None:
        ended.append(failure)
        done.set()

    claim(run, LIFE, gone(1, 2, 77, -9, None))
    watch = Watchdog(run, LIFE, own, 0, 2, 0.2, end)
    watch.start()
    assert done.wait(30)
    watch.join(30)
    assert [failure.rank for failure in ended] == [1]
    quiet = Watchdog(run, "another life", own, 0, 2, 0.0, end)
    quiet.start()
    quiet.stopped.set()
    quiet.join(30)
    assert not quiet.is_alive()
    assert len(ended) == 1
