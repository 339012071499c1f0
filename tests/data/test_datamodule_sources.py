"""Training on shards without a manifest, on a server's, and on sequential sources."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fault_server import serve

from resscale.data import ShardDataModule
from resscale.data.dataset import Batch
from resscale.data.index_shards import expand_shards, index_shards
from resscale.data.samples import FileSamples, ShardSamples
from resscale.data.sequential import PROMISE
from resscale.errors import DataFormatError, RemoteError, UserInputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RESSCALE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pipe(foreign_shards: Path) -> str:
    return f"pipe:cat {foreign_shards}/part-000{{0..2}}.tar"


def module(rank: int = 0, world_size: int = 1, **options) -> ShardDataModule:
    small = {"global_batch_size": 4, "image_size": 16, "num_workers": 0, "decoder": "pillow"}
    data = ShardDataModule(**(small | options))
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        num_devices=world_size,
        limit_train_batches=1.0,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return data


def epoch_of(data: ShardDataModule) -> list[Batch]:
    return list(data.train_dataloader())


def ids_of(batches: list[Batch]) -> list[int]:
    return [number for batch in batches for number in batch["id"].tolist()]


# Shards without a manifest


@pytest.mark.parametrize("what", ["{}", "{}/*.tar"])
def test_shards_without_a_manifest_are_those_that_have_one(foreign_shards: Path, what: str) -> None:
    data = module(train=what.format(foreign_shards), val=what.format(foreign_shards))
    data.check(("train", "val"), num_classes=3, world_size=1)
    found = epoch_of(data)
    evaluated = list(data.val_dataloader())
    index_shards(expand_shards([str(foreign_shards)]))
    expected = epoch_of(module(train=str(foreign_shards)))
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["id"], other["id"])
        assert torch.equal(one["label"], other["label"])
    assert sorted(ids_of(evaluated)) == list(range(12))


def test_shards_of_a_server_are_those_on_the_disk(foreign_shards: Path) -> None:
    expected = epoch_of(module(train=f"{foreign_shards}/*.tar"))
    with serve(foreign_shards, ["", "drop", "", "busy"]) as server:
        found = epoch_of(module(train=server.url + "/part-000{0..2}.tar"))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["id"], other["id"])


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_are_predicted_and_images_too(
    foreign_shards: Path, photo_tree: Path, indexed: bool
) -> None:
    if indexed:
        index_shards(expand_shards([str(foreign_shards)]))
    for what in (str(foreign_shards), f"{foreign_shards}/*.tar"):
        samples = module(predict=what).samples("predict")
        assert isinstance(samples, ShardSamples)
        assert samples.key(11) == "sample011"
    assert isinstance(module(predict=str(photo_tree)).samples("predict"), FileSamples)


def test_a_number_of_samples_is_refused_where_they_are_counted(foreign_shards: Path) -> None:
    with pytest.raises(UserInputError, match=r"epoch_samples=8 .* has 12 samples\. Leave it out"):
        module(train=str(foreign_shards), epoch_samples=8).check(("train",), 3, 1)
    with pytest.raises(UserInputError, match=r"data\.epoch_samples=0 must be at least 1"):
        module(epoch_samples=0)


# Sequential sources


def test_an_epoch_has_the_samples_that_are_asked_for(
    pipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = module(train=pipe, epoch_samples=22, shuffle="none")
    data.check(("train",), num_classes=3, world_size=1)
    loader = data.train_dataloader()
    first = list(loader)
    assert capsys.readouterr().out == PROMISE.format(samples=22) + "\n"
    assert len(first) == 5  # 22 // 4, and 2 left over
    assert ids_of(first) == list(range(20))  # running numbers
    loader.samples_seen = 20
    second = list(loader)
    assert ids_of(second) == list(range(20))
    assert {batch["epoch"] for batch in second} == {1}
    for batch in first + second:
        assert batch["image"].shape == (4, 3, 16, 16)
        assert batch["bad"] == []
        assert set(batch["label"].tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_have_as_many_batches_of_different_numbers(pipe: str, num_workers: int) -> None:
    # 3 shards for 2 ranks: uneven, and with two processes each, more readers than shards
    options = {"train": pipe, "epoch_samples": 24, "num_workers": num_workers, "shuffle": "none"}
    options["start_method"] = "fork"
    read = [epoch_of(module(rank, 2, **options)) for rank in range(2)]
    assert [len(batches) for batches in read] == [6, 6]  # 24 / 4
    assert sorted(ids_of(read[0] + read[1])) == list(range(24))


def test_a_damaged_image_is_replaced(tmp_path: Path, write_tar, jpegs: tuple[bytes, ...]) -> None:
    members = [("a.jpg", jpegs[0]), ("a.cls", b"1"), ("b.jpg", b"no image"), ("b.cls", b"2")]
    path = write_tar(tmp_path / "t.tar", members)
    data = module(train=f"pipe:cat {path}", epoch_samples=4, shuffle="none")
    (batch,) = epoch_of(data)
    assert [(bad.id, bad.key, bad.shard, bad.replaced_by) for bad in batch["bad"]] == [
        (1, "b", "t.tar", 0),
        (3, "b", "t.tar", 2),
    ]
    assert batch["label"].tolist() == [1, 1, 1, 1]


def test_what_goes_wrong_is_raised_here(tmp_path: Path, write_tar) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"1"), ("a.cls", b"5")])
    data = module(train=f"pipe:cat {path}", epoch_samples=4, shuffle="none")
    data.check(("train",), num_classes=3, world_size=1)
    with pytest.raises(DataFormatError, match="has the label 5, the model has num_classes=3"):
        epoch_of(data)
    with pytest.raises(RemoteError, match="did not come as a whole tar"):
        epoch_of(module(train="pipe:exit 7", epoch_samples=4))


def test_samples_that_must_be_counted_are_not_read_from_a_pipe(pipe: str) -> None:
    with pytest.raises(UserInputError, match=r"Say how many .*--data\.epoch_samples N"):
        module(train=pipe).check(("train",), 3, 1)
    for split in ("val", "test", "predict"):
        with pytest.raises(UserInputError, match=rf"data\.{split} is pipe:.*Only data\.train"):
            module(**{split: pipe}).check((split,), 3, 1)


def test_an_epoch_below_a_batch_is_refused(pipe: str) -> None:
    with pytest.raises(UserInputError, match="global_batch_size=4 is more than the 3"):
        module(train=pipe, epoch_samples=3).check(("train",), 3, 1)


def test_what_comes_as_it_comes_is_not_repeated(foreign_shards: Path) -> None:
    pipe = f"pipe:cat {foreign_shards}/part-0000.tar"
    data = module(train=pipe, epoch_samples=8, repeats=2)
    with pytest.raises(UserInputError, match=r"data\.repeats=2 needs samples that can be read aga"):
        data.check(("train",), 3, 1)
