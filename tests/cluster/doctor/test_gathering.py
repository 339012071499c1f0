"""Ranks come together, or say who is missing: in threads, around a real store."""

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistError, TCPStore

from resscale.cluster.doctor.finding import Rank
from resscale.cluster.doctor.gathering import Gathering, gather_srun, gather_torchrun, judge_roll
from resscale.cluster.environment import SlurmJob, read_slurm
from resscale.cluster.ranks import meeting_file
from resscale.errors import UserInputError


def job(rank: int, tasks: int = 2) -> SlurmJob:
    found = read_slurm(
        {
            "SLURM_JOB_ID": "4711",
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": str(rank),
            "SLURM_STEP_TASKS_PER_NODE": f"1(x{tasks})",
            "SLURMD_NODENAME": f"n{rank + 1}",
        }
    )
    assert found is not None
    return found


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions beside each other and return what each returned."""
    results: list[Any] = [None] * len(functions)

    def run(number: int) -> None:
        results[number] = functions[number]()

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def meet(folder: Path, rank: int, tasks: int = 2) -> Gathering:
    return gather_srun(job(rank, tasks), folder, timeout_s=30)


@pytest.mark.usefixtures("here")
def test_ranks_of_srun_meet_and_rank_0_hears_all(tmp_path: Path) -> None:
    folder = tmp_path / "runs"

    def act(rank: int) -> Any:
        gathered = meet(folder, rank)
        roll = gathered.call_the_roll(30)
        come = gathered.collect("greeting", {"from": rank}, 30)
        if rank == 0:
            gathered.tell("word", [1, 2])
        heard = gathered.hear("word", 30)
        return roll[0].level, gathered.present, come, heard, gathered

    first, second = together(lambda: act(0), lambda: act(1))
    ranks = [Rank(0, "n1"), Rank(1, "n2")]
    assert first[:4] == ("ok", ranks, {ranks[0]: {"from": 0}, ranks[1]: {"from": 1}}, [1, 2])
    assert second[:4] == ("ok", ranks, None, [1, 2])
    assert meeting_file(folder, job(0)).is_file()


@pytest.mark.usefixtures("here")
def test_a_rank_that_does_not_come_is_named_to_all_the_others(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def act(rank: int) -> Any:
        gathered = meet(tmp_path, rank, tasks=4)
        # A name service may keep one of them for seconds.
        both.wait(60)
        # The store is gone with rank 0's gathering, and the other rank may still read it.
        return gathered.call_the_roll(timeout_s=1)[0], gathered.present, gathered

    for found, present, _ in together(lambda: act(0), lambda: act(2)):
        assert found.level == "fail"
        assert found.text == "ranks 1, 3 of 4 have not come in 1 s"
        assert present == [Rank(0, "n1"), Rank(2, "n3")]


def test_a_rank_that_is_alone_waits_for_rank_0_and_no_longer(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"rank 1 on n2 has waited 0\.3 s"):
        gather_srun(job(1), tmp_path, timeout_s=0.3)


def test_a_rank_that_cannot_reach_rank_0_is_told_so(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        file = meeting_file(tmp_path, job(1))
        file.parent.mkdir()
        file.write_text(json.dumps({"address": "127.0.0.1", "port": nobody.getsockname()[1]}))
        with pytest.raises(DistError):
            gather_srun(job(1), tmp_path, timeout_s=1)


def test_what_a_rank_does_not_hand_in_is_left_out() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    gathered = Gathering(store, Rank(0, "n1"), 2)
    assert gathered.collect("greeting", "hello", timeout_s=0.2) == {Rank(0, "n1"): "hello"}
    assert gathered.hear("nothing", timeout_s=0.2) is None


@pytest.mark.usefixtures("here")
def test_the_meeting_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    gathered = meet(folder, 0, tasks=1)
    assert meeting_file(folder, job(0)).is_file()
    gathered.end(timeout_s=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("here")
def test_the_meeting_leaves_what_others_have_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    meet(tmp_path, 0, tasks=1).end(timeout_s=1)
    assert [file.name for file in tmp_path.iterdir()] == ["demo"]


def test_ranks_of_torchrun_meet_at_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    values = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)

    def act(rank: int) -> Any:
        return gather_torchrun(Rank(rank, "n1"), 2, 30).call_the_roll(30)[0].text

    assert together(lambda: act(0), lambda: act(1)) == ["all 2 ranks have met"] * 2


def test_a_roll_is_judged_by_who_is_missing() -> None:
    assert judge_roll([], 4, 10)[0].level == "ok"
    (found,) = judge_roll([3], 4, 10)
    assert (found.level, found.text) == ("fail", "rank 3 of 4 has not come in 10 s")
