"""The state of a packing under way: finished shards, other plans, torn lines, the lock."""

import json
from pathlib import Path

import pytest

from resscale.data.digits import digits_splits
from resscale.data.manifest import MANIFEST_NAME, Manifest
from resscale.data.pack_part import Part, temporary_name
from resscale.data.pack_plan import PackOptions, Plan, make_plan
from resscale.data.pack_shard import ShardResult, write_shard
from resscale.data.pack_state import (
    STATE_NAME,
    PackState,
    finished_manifest,
    remove_leftovers,
)
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


def test_what_other_parts_have_finished_is_known(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan, Part(0, 3)) as state:
        result = write_first_shard(plan, tmp_path)
        state.add(result)
        with PackState(tmp_path, plan, Part(1, 3)) as other:
            assert other.results == {0: result}


def test_the_last_of_the_parts_ends_the_packing(plan: Plan, tmp_path: Path) -> None:
    made: list[list[int]] = []

    def make(results: list[ShardResult]) -> Manifest:
        made.append([result.number for result in results])
        return Manifest((), (), ())

    for index in (2, 0, 1):
        part = Part(index, 3)
        with PackState(tmp_path, plan, part) as state:
            for task in plan.tasks(tmp_path, frozenset(), part):
                state.add(write_shard(task))
            assert (state.finish(make) is None) == (index != 1)
    assert made == [[0, 1, 2]]  # once, in the order of the shards
    assert not list(tmp_path.glob(".*"))


def test_shards_that_were_removed_meanwhile_are_missed(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan, Part(0, 3)) as state:
        state.add(write_first_shard(plan, tmp_path))
        (tmp_path / plan.shard_name(0)).unlink()
        with pytest.raises(UserInputError, match=r"test-000000\.tar is gone\. Run the same"):
            state.finish(lambda results: pytest.fail("there is nothing to make it of"))


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


def test_a_whole_state_is_not_written_again(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan) as state:
        state.add(write_first_shard(plan, tmp_path))
    # Another part that reads it meanwhile must not find it empty.
    stamp = (tmp_path / STATE_NAME).stat().st_mtime_ns
    with PackState(tmp_path, plan) as state:
        assert len(state.results) == 1
    assert (tmp_path / STATE_NAME).stat().st_mtime_ns == stamp


@pytest.mark.parametrize("text", ["", '{"plan": "0'])
def test_state_without_its_first_line_begins_anew(plan: Plan, tmp_path: Path, text: str) -> None:
    (tmp_path / STATE_NAME).write_text(text)
    with PackState(tmp_path, plan) as state:
        assert state.results == {}
    assert json.loads((tmp_path / STATE_NAME).read_text())["plan"] == plan.digest


def test_leftovers_of_a_killed_packing_are_removed_by_its_next_start(
    plan: Plan, tmp_path: Path
) -> None:
    own, other = Part(1, 3), Part(2, 3)
    (tmp_path / temporary_name("test-000001.tar", own.tag)).touch()
    (tmp_path / f"{temporary_name('test-000001.index.npz', own.tag)}.tmp").touch()
    theirs = temporary_name("test-000002.tar", other.tag)
    (tmp_path / theirs).touch()
    with PackState(tmp_path, plan, own):
        # It cannot be told from here whether the other part still writes on another node.
        assert {path.name for path in tmp_path.iterdir()} == {theirs, own.state_name}


def test_leftovers_of_parts_that_are_gone_are_removed_in_the_end(
    plan: Plan, tmp_path: Path
) -> None:
    alive, gone = Part(0, 3), Part(1, 3)
    kept = temporary_name("test-000000.tar", alive.tag)
    with PackState(tmp_path, plan, gone):
        pass
    with PackState(tmp_path, plan, alive):
        for part in (alive, gone):
            (tmp_path / temporary_name("test-000000.tar", part.tag)).touch()
        remove_leftovers(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {kept, alive.state_name}


def test_hidden_files_that_no_packing_has_left_stay(tmp_path: Path) -> None:
    (tmp_path / ".mine.tmp").touch()
    remove_leftovers(tmp_path)
    assert (tmp_path / ".mine.tmp").exists()


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


def test_one_part_in_two_processes(plan: Plan, tmp_path: Path) -> None:
    part = Part(1, 3)
    with (
        PackState(tmp_path, plan, part),
        pytest.raises(UserInputError, match="Another `resscale pack` is writing part 1/3 into"),
    ):
        PackState(tmp_path, plan, part)


def test_parts_of_two_divisions_at_once(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan, Part(1, 3)):
        with pytest.raises(UserInputError, match=r"part 1/3 .* cannot take part 1/2\. .*by 3 too"):
            PackState(tmp_path, plan, Part(1, 2))
        with pytest.raises(UserInputError, match=r"part 1/3 .* this one cannot take the whole"):
            PackState(tmp_path, plan)


def test_parts_of_two_divisions_after_each_other(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan, Part(0, 3)) as state:
        result = write_first_shard(plan, tmp_path)
        state.add(result)
    with PackState(tmp_path, plan, Part(0, 2)) as state:
        assert state.results == {0: result}  # not to be written again


def test_part_of_another_plan_leaves_no_trace(plan: Plan, tmp_path: Path) -> None:
    with PackState(tmp_path, plan, Part(0, 3)):
        pass
    other = make_plan(plan.split, PackOptions(samples_per_shard=10, limit=20))
    with pytest.raises(UserInputError, match="limit was 30, is 20"):
        PackState(tmp_path, other, Part(1, 3))
    assert [path.name for path in tmp_path.iterdir()] == [Part(0, 3).state_name]


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
