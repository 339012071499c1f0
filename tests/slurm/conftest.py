"""One SLURM cluster for the tests of a test process; they skip where there can be none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from slurm_cluster import SlurmCluster, missing


@pytest.fixture(scope="session")
def slurm_is_possible() -> None:
    """Skip, with the reason, where this machine cannot have a cluster."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def slurm(slurm_is_possible: None) -> Iterator[SlurmCluster]:
    """A running cluster of three nodes."""
    with SlurmCluster() as running:
        yield running
