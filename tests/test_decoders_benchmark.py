"""The benchmark of decoders: its arithmetic, its reference picture, and one small run."""

from __future__ import annotations

import io
import math
from pathlib import Path

import decoders as benchmark
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


def test_the_time_of_an_image_is_the_median_of_its_rounds() -> None:
    times_ns = np.array([[1e6, 9e6], [2e6, 4e6], [90e6, 5e6]], np.int64)
    assert benchmark.mean_of_medians(times_ns) == (2 + 5) / 2


def test_each_decoder_begins_as_often_as_any_other() -> None:
    names = ["a", "b", "c"]
    orders = [benchmark.turned(names, number) for number in range(6)]
    assert [order[0] for order in orders] == ["a", "b", "c", "a", "b", "c"]
    assert all(sorted(order) == names for order in orders)


def test_psnr_is_that_of_the_mean_squared_error() -> None:
    one, other = np.zeros((2, 2), np.uint8), np.full((2, 2), 5, np.uint8)
    assert benchmark.psnr(one, other) == pytest.approx(20 * math.log10(255 / 5))
    assert benchmark.psnr(one, one) == math.inf


def test_the_table_has_ratios_to_the_first_row() -> None:
    decibels = np.array([50.0] * 19 + [40.0])
    rows = [
        benchmark.Row("pillow", 2.0, np.full(20, math.inf), decibels + 10),
        benchmark.Row("native", 0.5, decibels, decibels),
    ]
    lines = benchmark.table(rows).splitlines()
    assert lines[2] == "| pillow | 2.00 | 1.00 | 500 | equal / equal | 60.0 / 50.0 |"
    # The worst of 20 is the 5th percentile.
    assert lines[3] == "| native | 0.50 | 0.25 | 2,000 | 50.0 / 40.0 | 50.0 / 40.0 |"


def test_two_steps_are_resize_then_crop() -> None:
    photo = Image.fromarray(load_sample_images().images[0])  # 640 × 427
    buffer = io.BytesIO()
    photo.save(buffer, "PNG")
    small = photo.resize((383, 256), Image.Resampling.BILINEAR)  # int(256 × 640 / 427) = 383
    expected = np.asarray(small)[16:240, 80:304]  # round((383 - 224) / 2) = round(79.5) = 80
    assert np.array_equal(benchmark.two_steps(buffer.getvalue(), 224, 256), expected)


def test_a_run_prints_a_table_for_each_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("originals", "side500"):
        (tmp_path / folder / "class00").mkdir(parents=True)
        for number, photo in enumerate(load_sample_images().images):
            Image.fromarray(photo).save(tmp_path / folder / "class00" / f"{number}.jpg")
    benchmark.main([str(tmp_path), "--rounds", "1", "--size", "32"])
    out = capsys.readouterr().out
    assert out.count("| pillow |") == 3
    assert "originals: 2 images of" in out
    assert "320 px: 2 images of" in out


def test_a_folder_without_photos_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no \.jpg; make some: benchmarks/photos\.py"):
        benchmark.main([str(tmp_path)])
