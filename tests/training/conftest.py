"""Full disks, for real: files that may not grow (`small_disk` is in the folder above)."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest


@pytest.fixture
def limited_files() -> Iterator[None]:
    """Files of this process may grow to 1 MB and no further."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
