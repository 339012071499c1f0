"""Sequential sources: who reads which shard, what samples come, and how it ends."""

import gzip
import io
import pickle
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from resscale.data.sequential import (
    SequentialSamples,
    StreamPlace,
    expand_sequential,
    is_sequential,
    sequential_manifest,
    shards_of_reader,
)
from resscale.errors import DataFormatError, RemoteError, UserInputError

THREE = "pipe:cat {}/part-000{{0..2}}.tar"
IN_ORDER = StreamPlace(shuffle=False)


def samples_of(location: str, place: StreamPlace = IN_ORDER, **options) -> SequentialSamples:
    return SequentialSamples(expand_sequential(location), 12, place, **options)


def keys(samples: SequentialSamples, count: int) -> list[str]:
    found = []
    for number in range(count):
        samples.read(number)
        found.append(samples.key(number))
    return found


def test_what_is_sequential() -> None:
    assert all(map(is_sequential, ["pipe:cat a.tar", "a/t-{0..9}.tar.gz", "http://h/t.tgz?k=1"]))
    assert not any(map(is_sequential, ["a", "a/t.tar", "s3://b/t-{0..9}.tar", "builtin:digits"]))


def test_shards_of_commands_and_files(foreign_shards: Path) -> None:
    names = [f"pipe:cat {foreign_shards}/part-000{number}.tar" for number in range(3)]
    assert expand_sequential(THREE.format(foreign_shards)) == names
    (foreign_shards / "a.tar.gz").touch()
    found = expand_sequential(f"file://{foreign_shards}/*.tar.gz")
    assert found == [f"{foreign_shards}/a.tar.gz"]
    with pytest.raises(UserInputError, match=r"pipe:curl -sf --retry 5 http://h/a\.tgz"):
        expand_sequential("http://h/a.tgz")
    with pytest.raises(UserInputError, match=r"b\.tgz is missing"):
        expand_sequential(f"{foreign_shards}/b.tgz")


def test_a_number_of_samples_is_needed() -> None:
    with pytest.raises(UserInputError, match=r"Say how many .*--data\.epoch_samples N"):
        sequential_manifest("pipe:cat a.tar", None)
    manifest = sequential_manifest("pipe:cat {a,b,c}.tar", 10)
    assert manifest.num_samples == 10
    assert manifest.shard_sizes.tolist() == [3, 3, 4]  # 10 thirds: up to 3, 6 and 10
    assert manifest.fingerprint != sequential_manifest("pipe:cat {a,b,c}.tar", 11).fingerprint
    assert manifest.fingerprint != sequential_manifest("pipe:cat {a,b,d}.tar", 10).fingerprint


@pytest.mark.parametrize(("num_shards", "num_readers"), [(7, 1), (7, 3), (2, 5), (1, 4), (6, 3)])
def test_readers_share_each_pass(num_shards: int, num_readers: int) -> None:
    place = StreamPlace(seed=3)
    turns = num_shards * 4  # of each reader: 4 × readers passes in all
    read = [
        list(islice(shards_of_reader(num_shards, reader, num_readers, place), turns))
        for reader in range(num_readers)
    ]
    # Taken in turns, they are passes over all shards, each in an order of its own.
    merged = [read[turn % num_readers][turn // num_readers] for turn in range(turns * num_readers)]
    passes = [merged[n : n + num_shards] for n in range(0, len(merged), num_shards)]
    assert all(sorted(one) == list(range(num_shards)) for one in passes)
    assert set(Counter(merged).values()) == {4 * num_readers}
    if num_shards == 7:
        assert len(set(map(tuple, passes))) > 1


def test_another_seed_or_beginning_is_another_order() -> None:
    orders = {
        tuple(islice(shards_of_reader(20, 0, 1, StreamPlace(seed=seed, samples_seen=seen)), 20))
        for seed, seen in [(0, 0), (1, 0), (0, 256)]
    }
    assert len(orders) == 3
    assert list(islice(shards_of_reader(3, 0, 1, IN_ORDER), 5)) == [0, 1, 2, 0, 1]


def test_samples_come_in_order_and_begin_again(
    foreign_shards: Path, jpegs: tuple[bytes, ...]
) -> None:
    samples = samples_of(THREE.format(foreign_shards))
    read = [samples.read(number) for number in range(14)]
    assert [data for data, _ in read] == [*jpegs, *jpegs[:2]]
    assert [label for _, label in read] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]
    assert samples.key(13) == "sample001"
    assert samples.origin(13) == f"pipe:cat {foreign_shards}/part-0000.tar"
    assert len(samples) == 12


def test_a_sample_of_another_process_has_a_running_number() -> None:
    assert samples_of("pipe:cat a.tar").key(7) == "sample 7 of its epoch"
    assert samples_of("pipe:cat a.tar").origin(7) == ""


@pytest.fixture
def compressed(foreign_shards: Path) -> str:
    for path in foreign_shards.glob("*.tar"):
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    return f"{foreign_shards}/*.tar.gz"


def test_compressed_shards(compressed: str) -> None:
    samples = samples_of(compressed)
    assert keys(samples, 12) == [f"sample{number:03d}" for number in range(12)]


def test_shuffled_samples_are_all_there_and_repeat_with_their_seed(compressed: str) -> None:
    def read(**place: int) -> list[str]:
        return keys(samples_of(compressed, StreamPlace(**place)), 60)

    first = read(seed=1)
    assert first == read(seed=1)
    assert first != read(seed=2)
    assert first != read(seed=1, samples_seen=12)
    assert first[:12] != sorted(first[:12])
    assert set(first) == {f"sample{number:03d}" for number in range(12)}


def test_ranks_read_different_shards(foreign_shards: Path) -> None:
    read = [
        set(keys(samples_of(THREE.format(foreign_shards), StreamPlace(r, 3, shuffle=False)), 4))
        for r in range(3)
    ]
    assert len(set.union(*read)) == 12


class _Keys(Dataset[str]):
    def __init__(self, samples: SequentialSamples) -> None:
        self.samples = samples

    def __getitem__(self, number: int) -> str:
        self.samples.read(number)
        return self.samples.key(number)

    def __len__(self) -> int:
        return 8


def test_reading_processes_read_different_shards(foreign_shards: Path) -> None:
    samples = samples_of(THREE.format(foreign_shards))
    loader = DataLoader(_Keys(samples), batch_size=None, num_workers=2)
    # Two processes take turns, each with a shard of its own: the first two of three.
    assert sorted(loader) == [f"sample{number:03d}" for number in range(8)]


def test_a_copy_opens_a_stream_of_its_own(foreign_shards: Path) -> None:
    samples = samples_of(THREE.format(foreign_shards))
    keys(samples, 5)
    assert keys(pickle.loads(pickle.dumps(samples)), 2) == ["sample000", "sample001"]
    assert keys(samples, 1) == ["sample005"]


def write(path: Path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return f"pipe:cat {path}"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("x.txt", b"1"), ("x.cls", b"1")], "sample 'x' has no image, only .'cls', 'txt'."),
        ([("x.jpg", b"1")], r"sample 'x' has no \.cls label"),
        ([("x.jpg", b"1"), ("x.cls", b"cat")], "sample 'x' has the label b'cat'"),
        ([("x.jpg", b"1"), ("x.cls", b"7")], "has the label 7, the model has num_classes=3"),
        ([], "holds no samples, nor do the 0 shards before it"),
    ],
)
def test_samples_that_cannot_be_trained_on(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    samples = samples_of(write(tmp_path / "a.tar", members), num_classes=3)
    with pytest.raises(DataFormatError, match=message):
        samples.read(0)


def test_one_empty_shard_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", [])
    write(tmp_path / "1.tar", [("x.jpg", b"1"), ("x.cls", b"1")])
    samples = samples_of(f"pipe:cat {tmp_path}/{{0,1}}.tar")
    assert keys(samples, 4) == ["x"] * 4


def test_a_command_that_fails_ends_it(foreign_shards: Path) -> None:
    samples = samples_of(f"pipe:cat {foreign_shards}/part-000{{0,9}}.tar 2>&-")
    assert keys(samples, 4)[-1] == "sample003"
    with pytest.raises(RemoteError, match=r"part-0009\.tar"):
        samples.read(4)
