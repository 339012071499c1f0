"""The page in a real browser: its pictures show, on a desktop's width and on a narrow one."""

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resscale.report.curves import colours
from resscale.report.groups import group_runs
from resscale.report.mistakes_file import Measured, thumbnail, write_measured
from resscale.report.page import write_report
from resscale.report.run_page import render_run
from resscale.report.runs import Run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH")


def screenshot(page: Path, width_px: int, height_px: int) -> np.ndarray:
    """The page as a browser shows it, uint8 (height_px, width_px, 3)."""
    picture = page.with_name("screen.png")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox refuses to run as root
    subprocess.run(
        [
            BROWSER,
            "--headless",
            *root,
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            f"--user-data-dir={page.with_name('profile')}",
            "--host-resolver-rules=MAP * ~NOTFOUND",  # no name leads anywhere
            f"--window-size={width_px},{height_px}",
            f"--screenshot={picture}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(picture) as image:
        shown = np.asarray(image.convert("RGB"))
    assert shown.shape == (height_px, width_px, 3)
    return shown


def pixels_of(shown: np.ndarray, rgb: Sequence[int]) -> int:
    """How many pixels have about this colour."""
    return int((np.abs(shown.astype(int) - rgb) < 8).all(axis=2).sum())


@pytest.mark.parametrize(("width_px", "height_px"), [(1200, 2400), (500, 3600)])
def test_text_and_curves_are_on_the_screen(
    made: Callable[..., Run], tmp_path: Path, width_px: int, height_px: int
) -> None:
    plain = {"model.model": "plain20_cifar"}
    groups = group_runs([made("a"), made("b", seed=1), made("c", options=plain)])
    page = write_report(groups, tmp_path / "page.html", "today")[0]
    shown = screenshot(page, width_px, height_px)
    # The first heading and table are text on paper; further down lie the pictures' curves.
    assert 5 < shown[:200].std() < 120
    for colour in colours(2):
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        # A swatch in the table has about 13 × 13 = 169 pixels; the rest are lines in the pictures.
        assert pixels_of(shown, rgb) > 400


def test_mistakes_are_on_the_screen_of_a_phone(
    made: Callable[..., Run], measured: Measured, tmp_path: Path
) -> None:
    run = made("a")
    green, _ = thumbnail(np.full((8, 8, 3), (10, 200, 60), dtype=np.uint8))
    tile = dataclasses.replace(measured.confident[0], thumbnail=green)
    write_measured(dataclasses.replace(measured, confident=(tile,)), run.path)
    page = tmp_path / "run.html"
    page.write_text(render_run(run, "a group", "report.html", "today"))
    shown = screenshot(page, 500, 4000)
    # A tile is at least 7.5rem = 120 pixels wide, less its round corners.
    assert pixels_of(shown, (10, 200, 60)) > 110 * 110
    # The deepest orange is rgb(209 89 11) at 0.6 on white, the rest of it white; a cell has at
    # least 2.6rem × 1.5rem = 42 × 24 pixels, less its number.
    orange = [round(0.6 * channel + 0.4 * 255) for channel in (209, 89, 11)]
    assert pixels_of(shown, orange) > 600
    # All four cats are right: the deepest blue, rgb(11 98 164) at 0.45.
    blue = [round(0.45 * channel + 0.55 * 255) for channel in (11, 98, 164)]
    assert pixels_of(shown, blue) > 600
