"""The benchmark of manifests says what it has measured."""

import re

import manifest
import pytest


def test_it_prints_times_and_memory(capfd: pytest.CaptureFixture[str]) -> None:
    manifest.main(["--shards", "3", "--samples", "2"])
    loaded, indexed = capfd.readouterr().out.splitlines()
    assert re.fullmatch(
        r"3 shards: loaded in [\d.]+ CPU ms, fingerprint [0-9a-f]{16} in [\d.]+ CPU ms, \d+ MiB.*",
        loaded,
    )
    assert re.fullmatch(r"index of 2 samples: [\d.,]+ CPU µs a sample", indexed)
