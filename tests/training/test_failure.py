"""Which rank failed first: decided from records and claims, the same for all ranks."""

import json
import threading
from pathlib import Path

import pytest
from torch import distributed

from resscale.training.failure import (
    EVENT,
    Failure,
    announce,
    claim,
    first_to_blame,
    is_consequence,
    read_failure,
)
from resscale.training.phase import Phase, Record, State
from resscale.training.rundir import RunDir

LIFE = "0123456789abcdef"


def record(rank: int, step: int, beats: int, phase: Phase, entered_s: float = 0.0) -> Record:
    return Record(rank, 100 + rank, LIFE, "m", "h", beats, step, phase, State.RUNNING, entered_s)


def failure(rank: int = 1, message: str = "boom", **more: object) -> Failure:
    facts: dict[str, object] = {
        "kind": "exception",
        "rank": rank,
        "world_size": 4,
        "host": "node7",
        "pid": 4242,
        "step": 12,
        "phase": "data",
        "exception": "ValueError",
        "message": message,
        "traceback": "Traceback (most recent call last):\nValueError: boom\n",
        "exit_code": 1,
    }
    return Failure(**{**facts, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("records", "rank", "same_place"),
    [
        (
            # One rank waits for data of the step whose gradients the others want to sum.
            [
                record(0, 5, 23, Phase.BACKWARD),
                record(1, 5, 21, Phase.DATA),
                record(2, 5, 23, Phase.BACKWARD),
            ],
            1,
            [],
        ),
        (
            # Behind by a step, though its phase comes later in the order of phases.
            [record(0, 6, 25, Phase.DATA), record(1, 5, 24, Phase.SYNC)],
            1,
            [],
        ),
        (
            # In the evaluation all are at the same step: how far they are tells.
            [record(0, 22, 180, Phase.EVALUATE), record(1, 22, 170, Phase.EVALUATE)],
            1,
            [],
        ),
        (
            # At the same place: the one that came there first, and the doubt is said.
            [
                record(0, 5, 23, Phase.BACKWARD, 30.0),
                record(1, 5, 23, Phase.BACKWARD, 20.0),
                record(2, 5, 23, Phase.BACKWARD, 25.0),
            ],
            1,
            [0, 2],
        ),
        ([record(0, 5, 21, Phase.DATA)], 0, []),
    ],
    ids=["data", "step behind", "evaluation", "same place", "alone"],
)
def test_the_rank_that_came_least_far_is_to_blame(
    records: list[Record], rank: int, same_place: list[int]
) -> None:
    for order in (records, records[::-1]):
        first, same = first_to_blame(order)
        assert (first.rank, same) == (rank, same_place)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:7"),
        RuntimeError("Connection reset by peer"),
        RuntimeError("NCCL communicator was aborted on rank 0."),
        RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
        distributed.DistNetworkError("the server socket has failed"),
        distributed.DistBackendError("an error of any text"),
    ],
)
def test_errors_of_communication_may_follow_from_another_ranks(error: RuntimeError) -> None:
    assert is_consequence(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("Connection closed by peer"),
        ConnectionResetError("a download's connection reset by peer"),
        KeyError("gloo"),
    ],
)
def test_other_errors_are_a_ranks_own(error: Exception) -> None:
    assert not is_consequence(error)


def test_the_first_claim_is_what_all_ranks_name(tmp_path: Path) -> None:
    first, second = failure(rank=3), failure(rank=0)
    assert read_failure(tmp_path, LIFE) is None
    assert claim(tmp_path, LIFE, first) is first
    assert claim(tmp_path, LIFE, second) == first
    assert read_failure(tmp_path, LIFE) == first
    assert [file.name for file in (tmp_path / "ranks/failures").iterdir()] == [f"{LIFE}.json"]


def test_of_claims_at_the_same_time_one_wins(tmp_path: Path) -> None:
    together = threading.Barrier(8)
    named: list[int] = []

    def rank(number: int) -> None:
        together.wait()
        named.append(claim(tmp_path, LIFE, failure(rank=number)).rank)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(named) == 8
    assert len(set(named)) == 1


def test_another_life_of_the_run_has_a_failure_of_its_own(tmp_path: Path) -> None:
    claim(tmp_path, "an earlier life", failure(rank=3))
    assert read_failure(tmp_path, LIFE) is None
    assert claim(tmp_path, LIFE, failure(rank=2)).rank == 2


def test_a_claim_works_on_file_systems_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise PermissionError("hard links are not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    first = failure()
    assert claim(tmp_path, LIFE, first) is first
    assert read_failure(tmp_path, LIFE) == first


@pytest.mark.parametrize("content", ["", '{"kind": "exc', '{"rank": 1}'])
def test_a_failure_that_cannot_be_read_is_none_yet(tmp_path: Path, content: str) -> None:
    file = tmp_path / "ranks" / "failures" / f"{LIFE}.json"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert read_failure(tmp_path, LIFE) is None


def test_the_first_failure_is_a_line_of_the_ledger_and_later_ones_are_not(tmp_path: Path) -> None:
    announce(tmp_path, LIFE, failure(rank=3))
    announce(tmp_path, LIFE, failure(rank=0))
    (event,) = RunDir(tmp_path).read_events(EVENT)
    assert (event["rank"], event["step"], event["phase"]) == (3, 12, "data")
    assert (event["host"], event["pid"], event["exception"]) == ("node7", 4242, "ValueError")
    assert event["traceback"].endswith("ValueError: boom\n")
    assert json.loads((tmp_path / "events.jsonl").read_text()) == event


def test_where_nothing_can_be_written_the_failure_is_returned_all_the_same(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text("a file, so no folder can be made in it")
    own = failure()
    assert announce(run, LIFE, own) is own


def test_the_last_line_of_the_report_names_rank_step_phase_and_error() -> None:
    *trace, last = failure().report().splitlines()
    assert trace == ["Traceback (most recent call last):", "ValueError: boom"]
    assert last == (
        "rank 1 of 4 failed first, at step 12 in phase data (host node7, process 4242): "
        "ValueError: boom"
    )


def test_a_doubt_about_the_first_is_said() -> None:
    unsure = failure(kind="hang", exception=None, message="no progress for 9 s", same_place=[0, 2])
    assert unsure.summary().endswith(
        "no progress for 9 s; ranks at the same place, so it may be one of them: 0, 2"
    )


def test_a_users_error_is_told_without_a_traceback() -> None:
    assert failure(exit_code=2).report() == failure().summary()


def test_where_there_is_no_traceback_the_report_says_so() -> None:
    assert failure(traceback="").report().startswith("(no traceback)\nrank 1")
