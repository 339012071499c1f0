"""The page in a real browser: its pictures show, on a desktop's width and on a narrow one."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resscale.report.curves import colours
from resscale.report.groups import group_runs
from resscale.report.page import write_report
from resscale.report.runs import Run

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

pytestmark = pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on the PATH")


@pytest.mark.parametrize(("width_px", "height_px"), [(1200, 2400), (500, 3600)])
def test_text_and_curves_are_on_the_screen(
    made: Callable[..., Run], tmp_path: Path, width_px: int, height_px: int
) -> None:
    plain = {"model.model": "plain20_cifar"}
    groups = group_runs([made("a"), made("b", seed=1), made("c", options=plain)])
    page = write_report(groups, tmp_path / "page.html", "today")[0]
    picture = tmp_path / "screen.png"
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
            f"--user-data-dir={tmp_path / 'profile'}",
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
    # The first heading and table are text on paper; further down lie the pictures' curves.
    assert 5 < shown[:200].std() < 120
    for colour in colours(2):
        rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        # A swatch in the table has about 13 × 13 = 169 pixels; the rest are lines in the pictures.
        assert (np.abs(shown.astype(int) - rgb) < 8).all(axis=2).sum() > 400
