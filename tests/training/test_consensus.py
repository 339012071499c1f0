"""Ranks agree at a step boundary: both read the same sum at the same step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from resscale.training.consensus import Consensus

# Rank 1 asks at step 3 of 6; each rank writes down the sum it reads at each step.
VOTE = """
import json, sys, time
from torch import distributed
from resscale.training.consensus import Consensus
folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
consensus = Consensus()
read = []
for step in range(6):
    time.sleep(0.05 * rank)  # the ranks are not equally fast
    read.append(consensus.cast(int(rank == 1 and step >= 3)))
read.append(consensus.settle(1))
read.append(consensus.settle(0))
print(json.dumps(read))
distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> list[list[int]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", VOTE, str(folder), str(rank)], stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [json.loads(text) for text in said]


def test_both_ranks_read_the_same_sum_at_the_same_step(sums: list[list[int]]) -> None:
    assert sums[0] == sums[1]


def test_a_vote_comes_back_one_step_later(sums: list[list[int]]) -> None:
    # Cast at steps 0 to 5: 0 0 0 1 1 1 (of rank 1 only), read one step behind.
    assert sums[0][:6] == [0, 0, 0, 0, 1, 1]


def test_settling_reads_the_vote_under_way_and_this_one(sums: list[list[int]]) -> None:
    # The vote of step 5 (1) and one of each rank (2); then nothing is left over.
    assert sums[0][6:] == [3, 0]


def test_a_process_alone_reads_its_vote_at_once() -> None:
    consensus = Consensus()
    assert [consensus.cast(vote) for vote in (0, 1, 0)] == [0, 1, 0]
    assert consensus.settle(1) == 1
    assert consensus.settle(0) == 0
