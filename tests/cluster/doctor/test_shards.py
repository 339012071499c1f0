"""The data of a run as a node sees it, on the built-in shards."""

from pathlib import Path

import pytest

from resscale.cluster.doctor.finding import Finding
from resscale.cluster.doctor.placement import Placement
from resscale.cluster.doctor.shards import DataFacts, check_data, probe_data
from resscale.data.builtin import resolve
from resscale.data.datamodule import ShardDataModule

ALONE = Placement(1, 1)


def look(placement: Placement = ALONE, num_classes: int = 10, **options: object) -> list[Finding]:
    given = {"train": "builtin:digits/train", "val": "builtin:digits/test", "global_batch_size": 64}
    data = ShardDataModule(**{**given, **options})  # type: ignore[arg-type]
    facts = probe_data(data, ("train", "val"), num_classes, placement)
    return check_data(facts, placement, data.partitions)


def test_shards_that_fit_the_ranks_are_described() -> None:
    (found,) = look(Placement(2, 2))
    assert found.level == "ok"
    # 1,437 samples // 64 = 22 steps; 64 / 4 ranks = 16.
    assert found.text.startswith("train 1,437 samples in 2 shards of ")
    assert found.text.endswith("16/rank × 4 ranks × 1 accum = 64 global, 22 steps per epoch")


def test_shards_that_are_not_there_fail_each_by_itself(tmp_path: Path) -> None:
    found = look(train=str(tmp_path / "a"), val=str(tmp_path / "b"))
    assert [f.level for f in found] == ["fail", "fail"]
    assert str(tmp_path / "a") in found[0].text
    assert "resscale pack" in found[0].remedy


def test_a_truncated_shard_fails(tmp_path: Path) -> None:
    for file in Path(resolve("builtin:digits/train")).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = next(tmp_path.glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    (found,) = look(train=str(tmp_path))
    assert (found.level, "truncated" in found.text) == ("fail", True)


@pytest.mark.parametrize(
    ("placement", "options", "said"),
    [
        (Placement(1, 3), {}, "64"),  # 64 samples do not divide by 3 ranks
        (ALONE, {"global_batch_size": 2048}, "more than the 1437 training samples"),
        (ALONE, {"num_classes": 5}, "num_classes=5"),
    ],
)
def test_a_batch_or_a_net_that_does_not_fit_fails(
    placement: Placement, options: dict[str, int], said: str
) -> None:
    found = look(placement, **options)  # type: ignore[arg-type]
    assert found[0].level == "fail"
    assert said in found[0].text


def test_fewer_shards_than_nodes_are_warned_of() -> None:
    (found,) = check_data(DataFacts(num_shards=2), Placement(4, 1), 1)
    assert (found.level, found.text) == (
        "warn",
        "2 training shards for 4 nodes: nodes read the same shards",
    )


def test_partitions_that_nodes_cannot_share_are_warned_of() -> None:
    assert check_data(DataFacts(num_shards=9), Placement(4, 1), 6)[0].level == "warn"
    assert check_data(DataFacts(num_shards=9), Placement(4, 1), 8)[0].level == "ok"


def test_the_fingerprint_tells_other_shards() -> None:
    data = ShardDataModule(train="builtin:digits/train", val="builtin:digits/test")
    both = probe_data(data, ("train", "val"), 10, ALONE).fingerprint
    assert both == probe_data(data, ("train", "val"), 10, ALONE).fingerprint
    assert both.startswith(probe_data(data, ("train",), 10, ALONE).fingerprint)
