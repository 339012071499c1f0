"""What all tests share: one thread a process, small real data, subprocesses that cannot linger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rank_server import RankServer

# Before torch is imported anywhere: several processes on two cores must not fight for them.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell that starts a job in the background lets it ignore Ctrl-C, and its children inherit that;
# the tests that send one to a child must not depend on how they were started themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Pack the built-in data into a folder of this test session, not into the user's."""
    before = os.environ.get("RESSCALE_CACHE")
    os.environ["RESSCALE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["RESSCALE_CACHE"]
    else:
        os.environ["RESSCALE_CACHE"] = before


@pytest.fixture(autouse=True)
def _no_run_for_others() -> Iterator[None]:
    """A run of this process names its directory to the ranks that it starts; not to later tests."""
    yield
    os.environ.pop("RESSCALE_RUN_DIR", None)


@pytest.fixture(scope="session")
def rank_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankServer]:
    """A process that forks ranks: for runs whose start is not what is tested."""
    server = RankServer(tmp_path_factory.mktemp("ranks"))
    yield server
    server.close()


@pytest.fixture
def resscale(tmp_path: Path) -> Run:
    """Run the real command in a process of its own, in an empty folder; return what it said."""

    def run(
        *arguments: str, cwd: Path = tmp_path, timeout_s: float = 240
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "resscale", *arguments],
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=False,
        )

    return run


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
