"""A small run of what `benchmarks/fuzz_native.py` does a million times, and its pure parts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import fuzz_native
import numpy as np
import pytest

from resscale.data.decode_native import why_not


def test_an_input_is_a_function_of_seed_and_number() -> None:
    assert fuzz_native.draw_input(0, 7) == fuzz_native.draw_input(0, 7)
    assert fuzz_native.draw_input(0, 7) != fuzz_native.draw_input(0, 8)
    assert fuzz_native.draw_input(0, 7) != fuzz_native.draw_input(1, 7)


def test_inputs_are_damaged_in_all_ways_and_some_are_whole() -> None:
    inputs = [fuzz_native.draw_input(0, number) for number in range(300)]
    files = set(fuzz_native.originals())
    assert 3 <= sum(drawn.data in files for drawn in inputs) <= 40  # one in thirty and few more
    longest = max(map(len, files))
    assert any(len(drawn.data) > longest for drawn in inputs)
    assert any(len(drawn.data) < 100 for drawn in inputs)
    assert {drawn.channels for drawn in inputs} == {1, 3}
    assert {drawn.cut for drawn in inputs} == {True, False}


def test_regions_are_finite_and_not_empty_and_some_are_absurd() -> None:
    boxes = [fuzz_native.draw_input(0, number).box for number in range(300)]
    for left, top, right, bottom in boxes:
        assert math.isfinite(right - left)
        assert math.isfinite(bottom - top)
        assert left < right
        assert top < bottom
    assert max(right for _, _, right, _ in boxes) > 1e200
    assert min(left for left, _, _, _ in boxes) < -1000


def test_the_packed_input_is_header_and_file() -> None:
    drawn = fuzz_native.Input(b"abc", (1.0, 2.0, 3.0, 4.0), True, 8, 3)
    # four doubles, then length, side, channels and cut in 4 bytes each
    assert len(drawn.packed()) == 4 * 8 + 4 * 4 + 3
    assert drawn.packed().endswith(b"abc")


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_hundreds_of_damaged_files_end_in_pixels_or_a_reason() -> None:
    from resscale._native import jpeg

    reasons: set[str] = set()
    decoded = 0
    for number in range(600):
        drawn = fuzz_native.draw_input(2, number)
        out = np.zeros((drawn.side, drawn.side, drawn.channels), np.uint8)
        try:
            reason = jpeg.decode(drawn.data, *drawn.box, drawn.cut, out)
        except jpeg.JpegError as error:
            reason = str(error)
        decoded += reason is None
        reasons.add(reason or "")
    assert decoded > 100
    assert len(reasons) > 10  # libjpeg's own words for many kinds of damage


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_the_sanitizers_see_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/usr/include/jpeglib.h").exists():
        pytest.skip("libjpeg's headers are not installed")
    faulty = tmp_path / "sources"
    shutil.copytree(fuzz_native.SOURCES, faulty, ignore=shutil.ignore_patterns("*.so"))
    right = "plane->samples_pitch + DCTSIZE);"
    code = (faulty / "decode.c").read_text()
    assert right in code
    (faulty / "decode.c").write_text(code.replace(right, "plane->samples_pitch);"))
    monkeypatch.setattr(fuzz_native, "SOURCES", faulty)
    program = fuzz_native.build(tmp_path)
    _, said = fuzz_native.run_batch(program, 0, range(200))
    assert said is not None
    assert "AddressSanitizer: " in said  # an overflow
