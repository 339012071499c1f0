"""Builds the native decoder where a C compiler and libjpeg's headers are; all else is pyproject's.

A build that fails leaves the package without it: the reason is printed, and written beside the
sources, where `resscale.data.decode_native.why_not` finds it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("src/resscale/_native")
NOTE = "not_built.txt"
# pip takes what is installed, or a wheel of its cache, for good enough otherwise.
REMEDY = (
    "apt install gcc libjpeg-dev python3-dev, then install resscale again with pip's "
    "--force-reinstall --no-deps --no-cache-dir"
)
# What each header is missing for, first what all else needs.
NEEDED = (
    ("stdlib.h", "there is no working C compiler"),
    ("Python.h", "Python's headers are missing"),
    ("jpeglib.h", "libjpeg-turbo's headers are missing"),
)


class BuildNative(build_ext):
    """Builds what it can, and notes why it cannot."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension; an error of it is a notice, as the extension is optional."""
        folder = SOURCES if self.inplace else Path(self.build_lib, "resscale", "_native")
        note = folder / NOTE
        note.unlink(missing_ok=True)
        try:
            super().build_extension(ext)
        except Exception as error:
            reason = f"{self._missing(ext) or error}; {REMEDY}"
            folder.mkdir(parents=True, exist_ok=True)
            note.write_text(reason + "\n")
            print(f"resscale: the native decoder is not built: {reason}", file=sys.stderr)
            raise

    def _missing(self, ext: Extension) -> str | None:
        with tempfile.TemporaryDirectory() as folder:
            for header, meaning in NEEDED:
                probe = Path(folder, "probe.c")
                first = "#include <stdio.h>\n"  # jpeglib.h does not name what it needs
                probe.write_text(f"{first}#include <{header}>\nint main(void) {{ return 0; }}\n")
                try:
                    self.compiler.compile(
                        [str(probe)], output_dir=folder, include_dirs=ext.include_dirs
                    )
                except Exception:
                    return meaning
        return None


if os.name == "posix":
    setup(
        cmdclass={"build_ext": BuildNative},
        ext_modules=[
            Extension(
                "resscale._native.jpeg",
                sources=sorted(str(file) for file in SOURCES.glob("*.c")),
                depends=sorted(str(file) for file in SOURCES.glob("*.h")),
                libraries=["jpeg", "m"],
                extra_compile_args=["-O3", "-g0", "-fvisibility=hidden"],
                py_limited_api=True,
                optional=True,
            )
        ],
        # One wheel for all versions of Python from 3.11 on.
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
else:
    setup()
