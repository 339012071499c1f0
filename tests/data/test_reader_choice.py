"""Threads read where the decoder lets Python's lock go, processes elsewhere."""

import pytest

from resscale.data.reader_choice import choose_worker_kind
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
