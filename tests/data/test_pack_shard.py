"""Writing one shard: whole or not at all, and one message for what the disk refuses."""

import hashlib
import tarfile
from pathlib import Path

import pytest

from resscale.data.digits import digits_splits
from resscale.data.pack_plan import PackOptions, make_plan
from resscale.data.pack_shard import ShardResult, ShardTask, write_shard, writing_to
from resscale.errors import UserInputError


@pytest.fixture
def task(tmp_path: Path) -> ShardTask:
    plan = make_plan(digits_splits()[1], PackOptions(limit=5))
    return next(plan.tasks(tmp_path, frozenset()))


def test_result_describes_the_file(task: ShardTask, tmp_path: Path) -> None:
    result = write_shard(task)
    raw = (tmp_path / task.name).read_bytes()
    assert (result.samples, result.bytes) == (5, len(raw))
    assert result.sha256 == hashlib.sha256(raw).hexdigest()
    assert ShardResult.from_json(result.to_json()) == result


def test_members_carry_nothing_of_this_machine(task: ShardTask, tmp_path: Path) -> None:
    write_shard(task)
    with tarfile.open(tmp_path / task.name) as archive:
        members = archive.getmembers()
    assert {(m.uname, m.gname, m.uid, m.gid, m.mode, m.mtime) for m in members} == {
        ("root", "root", 0, 0, 0o644, 0)
    }
    first = task.refs[0].key
    assert [member.name for member in members[:2]] == [f"{first}.cls", f"{first}.jpg"]


def test_interruption_leaves_nothing(
    task: ShardTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("resscale.data.pack_shard.encode_pixels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shard(task)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written(task: ShardTask, tmp_path: Path) -> None:
    tmp_path.rmdir()
    with pytest.raises(UserInputError, match=r"Cannot write into .*: No such file or directory"):
        write_shard(task)


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(KeyError), writing_to(tmp_path):
        raise KeyError
