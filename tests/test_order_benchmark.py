"""`benchmarks/order.py`: what an order costs."""

import pytest
from order import main


def test_a_row_for_each_shuffle_and_number_of_partitions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape = ["--shards", "20", "--samples_per_shard", "10", "--global_batch_size", "8"]
    main([*shape, "--partitions", "1", "4", "--shuffle", "full", "--steps", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert "20 shards of 10 samples, global batches of 8" in lines[1]
    rows = [line.split(" | ") for line in lines if line.startswith("| full")]
    assert [row[1] for row in rows] == ["1", "4"]
    assert all(len(row) == 7 and row[6].endswith(" MB |") for row in rows)
