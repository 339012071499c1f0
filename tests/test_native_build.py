"""setup.py: the native decoder is built where it can be, and what is missing is said where not."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 reads our pyproject")
ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Build the extension below `folder`; the tree itself stays as it is."""
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", str(folder), "--build-temp",
         str(folder / "objects")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", **environment},
    )  # fmt: skip


def test_without_a_compiler_the_build_goes_on_and_says_why(tmp_path: Path) -> None:
    done = build(tmp_path, CC="/bin/false")
    assert done.returncode == 0, done.stderr
    assert "the native decoder is not built: there is no working C compiler" in done.stderr
    note = (tmp_path / "resscale" / "_native" / "not_built.txt").read_text()
    assert note == (
        "there is no working C compiler; apt install gcc libjpeg-dev python3-dev, "
        "then install resscale again with pip's --force-reinstall --no-deps --no-cache-dir\n"
    )
    assert not list(tmp_path.rglob("*.so"))


def test_without_libjpegs_headers_they_are_named(tmp_path: Path) -> None:
    # The preprocessor finds a file of that name first, and it is none.
    (tmp_path / "jpeglib.h").write_text("#error not here\n")
    done = build(tmp_path, CFLAGS=f"-I{tmp_path}")
    assert done.returncode == 0, done.stderr
    if "there is no working C compiler" in done.stderr or "Python's headers" in done.stderr:
        pytest.skip("no compiler or no headers of Python here")
    assert "libjpeg-turbo's headers are missing" in done.stderr


def test_a_build_that_works_leaves_no_note(tmp_path: Path) -> None:
    note = tmp_path / "resscale" / "_native" / "not_built.txt"
    note.parent.mkdir(parents=True)
    note.write_text("of an earlier try\n")
    done = build(tmp_path)
    assert done.returncode == 0, done.stderr
    if note.exists():
        pytest.skip(note.read_text())
    assert (tmp_path / "resscale" / "_native" / "jpeg.abi3.so").exists()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_loops_become_vectors_under_the_flags_of_python(tmp_path: Path) -> None:
    # Python's own flags have -fwrapv, under which loops over `int` do not: twice the time.
    flags = shlex.split(sysconfig.get_config_var("CFLAGS"))
    source = ROOT / "src" / "resscale" / "_native" / "resize.c"
    done = subprocess.run(
        ["gcc", *flags, "-O3", "-fopt-info-vec-optimized", "-c", str(source), "-o",
         str(tmp_path / "resize.o")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )  # fmt: skip
    lines = source.read_text().splitlines()
    loops = {
        lines[int(number) - 1].strip()
        for number in re.findall(r"resize\.c:(\d+):\d+: optimized: loop vectorized", done.stderr)
    }
    sums = "for (size_t i = 0; i < width / RS_BATCH * RS_BATCH; i++) {"
    assert sums in loops  # along rows, and of rows
    assert "for (size_t i = 0; i < width; i++) {" in loops  # the colours


def test_the_native_code_stays_small() -> None:
    sources = [*(ROOT / "src/resscale/_native").glob("*.[ch]")]
    assert sum(len(source.read_text().splitlines()) for source in sources) < 700
