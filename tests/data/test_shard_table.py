"""The shards of a manifest as columns: a sequence like any other."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from resscale.data.shard_table import ShardInfo, ShardRows, ShardTable

ROWS = [ShardInfo('"ä".tar', 3, 1 << 40, "ab" * 32), ShardInfo("b.tar", 0, 7, "")]


def read(text: str) -> ShardTable:
    rows = ShardRows()
    return rows.table(json.loads(text, object_pairs_hook=rows.take)["shards"])


def test_rows_are_what_was_put_in() -> None:
    table = ShardTable.of(ROWS)
    assert list(table) == ROWS
    assert table[-1] == ROWS[1]
    assert isinstance(table[0].samples, int)  # JSON knows no numpy numbers
    assert list(table[1:]) == ROWS[1:]
    assert ROWS[1] in table
    np.testing.assert_array_equal(table.bytes, [2**40, 7])
    with pytest.raises(IndexError):
        table[2]


def test_a_table_of_a_table_is_the_same() -> None:
    table = ShardTable.of(ROWS)
    assert ShardTable.of(table) is table


def test_tables_are_equal_by_their_rows() -> None:
    assert ShardTable.of(ROWS) == ShardTable.of(tuple(ROWS))
    assert ShardTable.of(ROWS) != ShardTable.of(ROWS[:1])
    assert ShardTable.of(ROWS) != ShardTable.of([ROWS[0], ShardInfo("b.tar", 1, 7, "")])


def test_what_is_written_as_json_is_read() -> None:
    for rows in (ROWS, ROWS[:1], []):
        table = ShardTable.of(rows)
        text = '{\n "shards": ' + table.json_text() + "\n}"
        assert text == json.dumps({"shards": [asdict(row) for row in rows]}, indent=1)
        assert read(text) == table


@pytest.mark.parametrize(
    "row",
    [
        {},
        [],
        {"name": "a", "samples": "x", "bytes": 1},
        {"name": "a", "samples": 1},
        {"name": "a", "samples": 1 << 70, "bytes": 1},
        {"name": "a", "samples": 1, "bytes": 2, "sha256": 3},
        {"name": {"name": "a", "samples": 1, "bytes": 2}, "samples": 1, "bytes": 2},
    ],
)
def test_rows_of_something_else(row: object) -> None:
    with pytest.raises((AttributeError, KeyError, TypeError, ValueError, OverflowError)):
        read(json.dumps({"shards": [row]}))


def test_shards_in_another_place_are_not_taken_for_those_of_the_list() -> None:
    row = {"name": "a", "samples": 1, "bytes": 2}
    with pytest.raises(ValueError, match="shards lists 1 of the 2 shards in the file"):
        read(json.dumps({"source": row, "shards": [row]}))


def test_a_checksum_may_be_left_out() -> None:
    row = {"name": "a", "samples": 1, "bytes": 2}
    other = {"name": "b", "samples": 1, "bytes": 2, "sha256": None}
    text = json.dumps({"source": {"name": "a"}, "shards": [row, other]})
    assert list(read(text)) == [ShardInfo("a", 1, 2, ""), ShardInfo("b", 1, 2, "")]
