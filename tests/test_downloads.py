"""`benchmarks/downloads.py`: the table of what nodes download."""

import pytest
from downloads import main


def test_a_table_has_a_row_for_each_number_of_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    shape = ["--shards", "16", "--samples_per_shard", "8", "--shard_mb", "1000"]
    options = ["--global_batch_size", "8", "--partitions", "1", "4", "--window", "16"]
    main([*shape, *options, "--nodes", "1", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "16 shards of 8 samples and 1000 MB (16 GB), global batch 8, shuffle window."
    )
    assert [line for line in lines if line.startswith(("| 1 |", "| 4 |"))] == [
        "| 1 | 16 | 16 GB | 1.00 | 2 | 2 GB | 16 GB | 1.000 |",
        # A quarter of each batch: a shard of 8 is left out with (3/4)^8 = 10%: 14.4 of 16.
        "| 4 | 14 | 14.4 GB | 3.60 | 2 | 1.8 GB | 16 GB | 1.000 |",
        "| 1 | 16 | 16 GB | 1.00 | 8 | 8 GB | 16 GB | 1.000 |",
        "| 4 | 4 | 4 GB | 1.00 | 2 | 2 GB | 4 GB | 1.000 |",
    ]
