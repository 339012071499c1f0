"""The state of a packing under way: finished shards, other plans, torn lines, the lock."""

import json
from pathlib import Path

import pytest

from resscale.data.digits import digits_splits
from resscale.data.manifest import MANIFEST_NAME
from resscale.data.pack_plan import PackOptions, Plan, make_plan
from resscale.data.pack_shard import ShardResult, write_shard
from resscale.data.pack_state import STATE_NAME, PackState, finished_manifest
from resscale.errors import UserInputError


@pytest.fixture
def plan() -> Plan:
    return make_plan(digits_splits()[1], PackOptions(samples_per_shard=10, limit=30))


def write_first_shard(plan: Plan, folder: Path) -> ShardResult:
    return write_shard(next(plan.tasks(folder, frozenset())))


def test_finished_shards_are_remembered(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan) as state:
        result = write_first_shard(plan, tmp_path)
        state.add(result)
    with PackState(tmp_path, plan) as state:
        assert state.results == {0: result}
        state.remove()
    assert not (tmp_path / STATE_NAME).exists()


def test_shard_that_is_gone_or_changed_is_not_finished(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan) as state:
        state.add(write_first_shard(plan, tmp_path))
    (tmp_path / plan.shard_name(0)).write_bytes(b"short")
    with PackState(tmp_path, plan) as state:
        assert state.results == {}


def test_torn_last_line_costs_one_shard(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan) as state:
        result = write_first_shard(plan, tmp_path)
        state.add(result)
    with (tmp_path / STATE_NAME).open("a") as file:
        file.write('{"number": 1, "samp')
    with PackState(tmp_path, plan) as state:
        assert state.results == {0: result}
    lines = (tmp_path / STATE_NAME).read_text().splitlines()
    assert [sorted(json.loads(line))[0] for line in lines] == ["options", "bytes"]  # mended


@pytest.mark.parametrize("text", ["", '{"plan": "0'])
def test_state_without_its_first_line_begins_anew(plan: Plan, tmp_path: Path, text: str) -> None:
    (tmp_path / STATE_NAME).write_text(text)
    with PackState(tmp_path, plan) as state:
        assert state.results == {}
    assert json.loads((tmp_path / STATE_NAME).read_text())["plan"] == plan.digest


def test_leftovers_of_a_killed_packing_are_removed(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / ".test-000000.tar.99.tmp").touch()
    (tmp_path / "test-000000.index.npz.tmp").touch()
    with PackState(tmp_path, plan):
        assert [path.name for path in tmp_path.iterdir()] == [STATE_NAME]


def test_unfinished_packing_of_other_options(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan):
        pass
    other = make_plan(plan.split, PackOptions(samples_per_shard=10, limit=20))
    with pytest.raises(UserInputError, match=r"unfinished packing .*limit was 30, is 20.*rm -r"):
        PackState(tmp_path, other)
    with pytest.raises(UserInputError, match="unfinished packing of another plan"):
        finished_manifest(tmp_path, other)
    assert finished_manifest(tmp_path, plan) is None


def test_unfinished_packing_of_another_source(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan):
        pass
    other = make_plan(digits_splits()[0], plan.options)
    with pytest.raises(UserInputError, match="the source has changed"):
        PackState(tmp_path, other)


def test_unfinished_packing_of_other_versions(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PackState(tmp_path, plan):
        pass
    newer = {"resscale": "9", "webdataset": "9", "pillow": "9"}
    monkeypatch.setattr("resscale.data.pack_state.versions", lambda: newer)
    with pytest.raises(UserInputError, match=r"pillow was .*, is 9"):
        PackState(tmp_path, plan)


def test_two_packings_at_once(plan: Plan, tmp_path: Path) -> None:
    with (
        PackState(tmp_path, plan),
        pytest.raises(UserInputError, match="Another `resscale pack` is writing into"),
    ):
        PackState(tmp_path, plan)


def test_folders_that_are_free(plan: Plan, tmp_path: Path) -> None:
    assert finished_manifest(tmp_path / "none", plan) is None
    assert finished_manifest(tmp_path, plan) is None


def test_target_that_is_a_file(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserInputError, match="is a file, not a folder"):
        finished_manifest(tmp_path / "file", plan)


def test_manifest_that_cannot_be_read(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text("{}")
    with pytest.raises(UserInputError, match="its manifest is of another form"):
        finished_manifest(tmp_path, plan)
