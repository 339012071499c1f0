"""Full disks, for real: a small file system, and files that may not grow."""

from __future__ import annotations

import resource
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own; `indirect` parametrization gives its size, as `3m`."""
    # Not below tmp_path: were this process killed, pytest could never again clear its folder.
    folder = Path(tempfile.mkdtemp(prefix="resscale-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        folder.rmdir()
        pytest.skip("only root may mount a file system of a few megabytes")
    yield folder
    # Lazily: a thread may still hold a file of it open.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


@pytest.fixture
def limited_files() -> Iterator[None]:
    """Files of this process may grow to 1 MB and no further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
