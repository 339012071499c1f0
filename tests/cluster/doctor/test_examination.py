"""What several ranks find together; the whole of it is run in tests/test_cli_doctor.py."""

from pathlib import Path

import pytest

from resscale.cluster.doctor.examination import Options, examine_alone, examine_together
from resscale.cluster.doctor.finding import Rank
from resscale.cluster.doctor.gathering import Gathering
from resscale.cluster.doctor.local_checks import Surroundings
from resscale.cluster.environment import Launch
from resscale.errors import UserInputError

ME = Rank(1, "n2")


@pytest.fixture
def bare(tmp_path: Path) -> Surroundings:
    return Surroundings(Launch(1, "job1", None), 2, "localhost", ["resscale"], tmp_path)


def only(*names: str) -> Options:
    return Options(lambda name: name in names, seconds=0.1, timeout_s=1)


def test_one_process_speaks_for_itself(bare: Surroundings) -> None:
    held = examine_alone(bare, ME, only("open_files", "address"))
    assert [(one.finding.name, one.ranks, one.hosts) for one in held] == [
        ("open_files", (1,), ("n2",)),
        ("address", (1,), ("n2",)),
    ]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserInputError("rank 1 has waited 1 s: share the folder."), "rank 1 has waited 1 s"),
        (RuntimeError("refused\nmore"), "rank 1 on n2 has not found rank 0: refused"),
    ],
)
def test_a_rank_that_finds_nobody_speaks_for_itself(
    bare: Surroundings, error: Exception, text: str
) -> None:
    def meet() -> Gathering:
        raise error

    held = examine_together(bare, meet, ME, only("open_files"))
    assert held is not None
    assert [(one.finding.name, one.finding.level) for one in held] == [
        ("open_files", "ok"),
        ("meeting", "fail"),
    ]
    assert held[-1].finding.text == text
