"""`benchmarks/first_batch.py`: real shards, and each part of the way to a batch."""

import json
from pathlib import Path

import pytest
from first_batch import PARTS, forget, make_shards, measure

from resscale.data.manifest import Manifest


def test_shards_are_real_and_begun_in_mid_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(tmp_path, 3)
    manifest = Manifest.load(tmp_path)
    manifest.check_sizes()
    assert manifest.wrong_checksums() == []
    assert manifest.num_samples == 3000
    assert manifest.class_counts == (3,) * 1000
    forget(tmp_path)
    measure(str(tmp_path), -1, 100, 4)  # checks itself that step 15 of 30 comes first
    assert len(json.loads(capsys.readouterr().out)) == len(PARTS) + 1
