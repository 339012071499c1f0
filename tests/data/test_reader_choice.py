"""Threads read where the decoder lets Python's lock go, processes elsewhere."""

import os

import pytest

from resscale.data.reader_choice import (
    check_num_workers,
    choose_worker_kind,
    readers_per_rank,
)
from resscale.errors import UserInputError


@pytest.mark.parametrize(
    ("decoder", "kind"),
    [
        ("native", "threads"),
        ("nvimgcodec_gpu", "threads"),
        ("nvimgcodec", "processes"),
        ("simplejpeg", "processes"),
        ("pillow", "processes"),
    ],
)
def test_auto_follows_the_decoder(decoder: str, kind: str) -> None:
    assert choose_worker_kind("auto", decoder, is_sequential=False) == kind


@pytest.mark.parametrize("choice", ["processes", "threads"])
def test_what_is_asked_for_is_done(choice: str) -> None:
    assert choose_worker_kind(choice, "pillow", is_sequential=False) == choice


def test_a_sequential_source_is_read_by_processes() -> None:
    assert choose_worker_kind("auto", "native", is_sequential=True) == "processes"
    with pytest.raises(UserInputError, match="cannot read a sequential source"):
        choose_worker_kind("threads", "native", is_sequential=True)


def test_an_unknown_choice_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserInputError, match=r"worker_kind=thread is not one of auto, .*'threads'"):
        choose_worker_kind("thread", "native", is_sequential=False)


@pytest.mark.parametrize(("num_workers", "cpus", "found"), [(None, 8, 7), (None, 1, 0), (3, 1, 3)])
def test_one_cpu_of_a_rank_trains_and_the_others_read(
    num_workers: int | None, cpus: int, found: int
) -> None:
    assert readers_per_rank(num_workers, cpus, local_ranks=4) == found


def test_ranks_share_the_cpus_of_the_process() -> None:
    cpus = len(os.sched_getaffinity(0))
    assert readers_per_rank(None, None, local_ranks=1) == cpus - 1
    assert readers_per_rank(None, None, local_ranks=2 * cpus) == 0


def test_fewer_readers_than_none_are_refused() -> None:
    check_num_workers(0)
    with pytest.raises(UserInputError, match="num_workers=-1 must be 0 or more"):
        check_num_workers(-1)
