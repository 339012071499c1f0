"""Parts of a packing: in any order, at once, twice, killed: the bytes of one process.

```
pack ──────────────────────────────────────── bytes A
pack --part 2/3, pack --part 0/3 (killed, again), pack --part 1/3   bytes A, the last has written
                                                                    the manifest
```
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest

from resscale.data.digits import digits_splits
from resscale.data.manifest import MANIFEST_NAME, Manifest
from resscale.data.pack import Packed, PartPacked, _pack, pack_splits
from resscale.data.pack_part import WHOLE, Part, temporary_name
from resscale.data.pack_plan import PackOptions, make_plan
from resscale.data.pack_shard import write_shard
from resscale.data.pack_state import PackState
from resscale.data.sources import imagefolder_splits
from resscale.errors import DataFormatError, UserInputError

Contents = Callable[[Path], dict[str, bytes]]
OPTIONS = PackOptions(samples_per_shard=10, limit=65)  # 7 shards, the last of 5 samples


def pack(out: Path, part: Part = WHOLE, options: PackOptions = OPTIONS) -> Packed | PartPacked:
    (packed,) = pack_splits(digits_splits()[:1], out, options, "test", part=part)
    return packed


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process packs."""
    out = tmp_path_factory.mktemp("reference")
    pack(out)
    return out


def test_a_part_is_read_from_its_text() -> None:
    assert Part.parse("0/16") == Part(0, 16)
    assert str(Part.parse("15/16")) == "15/16"
    assert Part.parse("0/1") == WHOLE


@pytest.mark.parametrize("text", ["16/16", "1/0", "1", "1/", "-1/2", "1/2/3", "a/b", "1 of 2", ""])
def test_another_form_of_part_is_refused(text: str) -> None:
    with pytest.raises(UserInputError, match=f"--part {text}: (must be I/N|parts are counted)"):
        Part.parse(text)


@pytest.mark.parametrize("num_shards", [0, 1, 7, 16, 33])
def test_the_parts_hold_every_shard_once(num_shards: int) -> None:
    shards = [shard for index in range(16) for shard in Part(index, 16).shards(num_shards)]
    assert sorted(shards) == list(range(num_shards))
    sizes = [len(Part(index, 16).shards(num_shards)) for index in range(16)]
    assert max(sizes) - min(sizes) <= 1


def test_a_state_tells_its_part() -> None:
    for part in (WHOLE, Part(0, 16), Part(15, 16)):
        assert Part.of_state(part.state_name) == part
    assert Part.of_state(".pack-mine.jsonl") is None


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_parts_in_any_order_give_the_bytes_of_one_process(
    tmp_path: Path, reference: Path, contents: Contents, order: tuple[int, ...]
) -> None:
    *others, last = order
    missing = 7
    for index in others:
        packed = pack(tmp_path, Part(index, 3))
        assert isinstance(packed, PartPacked)
        missing -= packed.shards
        assert packed.missing == missing
        assert not (tmp_path / "train" / MANIFEST_NAME).exists()
    assert isinstance(pack(tmp_path, Part(last, 3)), Packed)
    assert contents(tmp_path) == contents(reference)


def test_more_parts_than_shards(tmp_path: Path, reference: Path, contents: Contents) -> None:
    for index in reversed(range(9)):
        packed = pack(tmp_path, Part(index, 9))
        assert isinstance(packed, Packed) == (index == 0)
    assert contents(tmp_path) == contents(reference)


def test_a_part_that_is_repeated_writes_nothing_again(
    tmp_path: Path, reference: Path, contents: Contents
) -> None:
    pack(tmp_path, Part(0, 2))
    stamps = {path.name: path.stat().st_ino for path in (tmp_path / "train").glob("*.tar")}
    assert len(stamps) == 4  # shards 0, 2, 4, 6
    pack(tmp_path, Part(0, 2))
    pack(tmp_path, Part(1, 2))
    assert isinstance(again := pack(tmp_path, Part(0, 2)), Packed)
    assert again.seconds == 0
    for name, inode in stamps.items():
        assert (tmp_path / "train" / name).stat().st_ino == inode
    assert contents(tmp_path) == contents(reference)


@pytest.mark.parametrize("others", [[WHOLE], [Part(0, 2), Part(1, 2)]], ids=["whole", "halves"])
def test_another_division_goes_on_with_what_is_there(
    tmp_path: Path, reference: Path, contents: Contents, others: list[Part]
) -> None:
    pack(tmp_path, Part(1, 3))
    before = {path.name: path.stat().st_ino for path in (tmp_path / "train").glob("*.tar")}
    for part in others:
        last = pack(tmp_path, part)
    assert isinstance(last, Packed)
    for name, inode in before.items():
        assert (tmp_path / "train" / name).stat().st_ino == inode
    assert contents(tmp_path) == contents(reference)


def test_left_out_samples_of_all_parts_are_listed_in_order(
    photo_tree: Path, tmp_path: Path, contents: Contents
) -> None:
    for name in ("cat/0.jpg", "dog/5.jpg", "newt/9.jpg"):
        (photo_tree / name).write_bytes(b"no image")
    options = PackOptions(samples_per_shard=2)
    splits = imagefolder_splits(photo_tree)
    pack_splits(splits, tmp_path / "whole", options, "test")
    for index in (1, 0):
        (packed,) = pack_splits(splits, tmp_path / "parts", options, "test", part=Part(index, 2))
    assert isinstance(packed, Packed)
    assert packed.left_out == 3
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_a_part_that_begins_while_the_last_one_ends_writes_nothing(
    tmp_path: Path, reference: Path, contents: Contents
) -> None:
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    before = {path.name: path.stat().st_ino for path in (tmp_path / "train").iterdir()}
    # As if the folder had been free a moment ago.
    plan = make_plan(digits_splits()[0], OPTIONS)
    assert isinstance(_pack(plan, tmp_path / "train", "test", Part(1, 3)), Packed)
    assert {path.name: path.stat().st_ino for path in (tmp_path / "train").iterdir()} == before
    assert contents(tmp_path) == contents(reference)


def test_parts_that_end_together_leave_one_manifest(
    tmp_path: Path, reference: Path, contents: Contents
) -> None:
    """All shards are there and noted, none of the parts has looked whether it is the last."""
    plan = make_plan(digits_splits()[0], OPTIONS)
    parts = [Part(index, 4) for index in range(4)]
    for part in parts:
        with PackState(tmp_path / "ready" / "train", plan, part) as state:
            for task in plan.tasks(tmp_path / "ready" / "train", frozenset(), part):
                state.add(write_shard(task))
    expected = contents(reference)
    for number in range(15):
        out = tmp_path / f"round-{number}"
        shutil.copytree(tmp_path / "ready", out)
        together = threading.Barrier(len(parts))
        ended: list[Packed | PartPacked] = []

        def end(part: Part, out: Path = out, ended: list = ended) -> None:
            together.wait()  # noqa: B023 - of this round: all threads end in it
            ended.append(pack(out, part))

        threads = [threading.Thread(target=end, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(packed) for packed in ended] == [Packed] * 4
        assert contents(out) == expected


KILLED = """
import sys
from pathlib import Path
from resscale.data.digits import digits_splits
from resscale.data.pack import pack_splits
from resscale.data.pack_part import Part
from resscale.data.pack_plan import PackOptions
if __name__ == "__main__":
    options = PackOptions(samples_per_shard=10)
    part = Part.parse(sys.argv[2])
    pack_splits(digits_splits()[:1], Path(sys.argv[1]), options, "test", part=part)
"""


def test_real_processes_at_once_and_one_of_them_killed(tmp_path: Path, contents: Contents) -> None:
    (tmp_path / "part.py").write_text(KILLED)
    out = tmp_path / "out"

    def start(part: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(tmp_path / "part.py"), str(out), part])

    first, second = start("0/2"), start("1/2")
    state = out / "train" / Part(0, 2).state_name
    while first.poll() is None and (not state.exists() or len(state.read_bytes()) < 1000):
        time.sleep(0.001)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    left = out / "train" / temporary_name("train-000142.tar", Part(0, 2).tag)
    left.write_bytes(b"left by a killed worker")
    assert second.wait() == 0
    assert not (out / "train" / MANIFEST_NAME).exists()
    options = PackOptions(samples_per_shard=10)
    pack(out, Part(0, 2), options)  # as SLURM would start it again
    whole = tmp_path / "whole"
    pack(whole, options=options)
    assert contents(out) == contents(whole)


def test_a_name_for_the_moment_tells_node_process_and_part() -> None:
    name = temporary_name("train-000003.tar", Part(3, 16).tag)
    assert name == f".train-000003.tar.3-of-16.{os.uname().nodename}-{os.getpid()}.tmp"


def test_shards_of_some_parts_are_no_data_set_yet(tmp_path: Path) -> None:
    pack(tmp_path, Part(0, 2))
    with pytest.raises(DataFormatError, match="is still being packed, or its packing was stopped"):
        Manifest.load(tmp_path / "train")
    pack(tmp_path, Part(1, 2))
    assert Manifest.load(tmp_path / "train").num_samples == 65
