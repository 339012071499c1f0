"""The choice of a decoder: the best that works, what was asked for, or why not."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
from odd_images import sound

from resscale.data.augment import CenterCrop
from resscale.data.decode_pillow import PillowDecoder
from resscale.data.decoders import (
    build_decoder,
    choose_decoder,
    describe_decoder,
    warn_of_other_decoder,
    why_not,
)
from resscale.errors import UserInputError

ORDER = ("native", "nvimgcodec", "simplejpeg", "pillow")
WORKING = [name for name in ORDER if why_not(name) is None]


@pytest.fixture
def nothing_but_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where no wheel is installed: imports of the decoders' modules fail."""
    for name in ORDER[:3]:
        monkeypatch.setitem(sys.modules, f"resscale.data.decode_{name}", None)


def test_auto_takes_the_first_that_works() -> None:
    assert choose_decoder() == WORKING[0]


def test_auto_ends_at_pillow(nothing_but_pillow: None) -> None:
    assert choose_decoder("auto") == "pillow"
    assert isinstance(build_decoder("auto", 1), PillowDecoder)


@pytest.mark.parametrize("before", WORKING)
def test_auto_keeps_what_the_run_has_used(before: str) -> None:
    assert choose_decoder("auto", before) == before


def test_auto_goes_on_without_what_is_no_longer_there(nothing_but_pillow: None) -> None:
    assert choose_decoder("auto", "simplejpeg") == "pillow"
    assert choose_decoder("auto", "of another version") == "pillow"


@pytest.mark.parametrize("name", WORKING)
def test_what_is_asked_for_is_taken(name: str) -> None:
    assert choose_decoder(name, before="pillow") == name
    out = np.full((16, 16, 1), 77, dtype=np.uint8)
    build_decoder(name, channels=1).decode(sound()["png"], CenterCrop(16, 16), np.empty(0), out)
    assert out.std() > 10


def test_what_does_not_work_is_refused_with_the_remedy(nothing_but_pillow: None) -> None:
    with pytest.raises(UserInputError, match=r"data\.decoder=native cannot be used: .* or set"):
        build_decoder("native")


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("simplejpeg", "simplejpeg", "pip install simplejpeg"),
        ("nvimgcodec", "nvidia.nvimgcodec", "pip install nvidia-nvimgcodec-cu12"),
    ],
)
def test_a_missing_wheel_is_named_with_its_command(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str, remedy: str
) -> None:
    ask = importlib.import_module(f"resscale.data.decode_{name}").why_not
    monkeypatch.setitem(sys.modules, module, None)
    if hasattr(ask, "cache_clear"):
        ask.cache_clear()
    try:
        with pytest.raises(UserInputError, match=remedy):
            choose_decoder(name)
    finally:
        if hasattr(ask, "cache_clear"):
            ask.cache_clear()


def test_an_unknown_name_has_its_neighbour_named() -> None:
    with pytest.raises(UserInputError, match=r"Did you mean 'simplejpeg'\?"):
        choose_decoder("simplejpg")


@pytest.mark.parametrize("name", WORKING)
def test_a_description_has_versions(name: str) -> None:
    assert describe_decoder(name).startswith(f"{name} (")
    assert any(digit in describe_decoder(name) for digit in "0123456789")


@pytest.mark.parametrize(
    ("before", "now"),
    [(None, "native"), ("pillow", "pillow"), ("nvimgcodec", "simplejpeg")],
)
def test_nothing_is_said_where_pixels_stay_the_same(before: str | None, now: str) -> None:
    assert warn_of_other_decoder(before, now) is None


def test_another_decoder_is_told() -> None:
    text = warn_of_other_decoder("pillow", "simplejpeg")
    assert text is not None
    assert "decoded with pillow so far and goes on with simplejpeg" in text


def test_the_reason_for_another_decoder_is_told(nothing_but_pillow: None) -> None:
    text = warn_of_other_decoder("native", "pillow")
    assert text is not None
    assert "native: the native decoder is not part of this installation" in text
