"""Batches: pixels, labels and flips by sample and epoch alone, and what stands in for damage."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from resscale.data import Manifest, ShardDataset
from resscale.data.augment import CenterCrop, RandomResizedCrop
from resscale.data.dataset import BadSample, Batch, BatchRequest
from resscale.data.decode import DecodeError
from resscale.data.index_shards import expand_shards, index_shards
from resscale.data.samples import FileSamples, find_images
from resscale.errors import DataFormatError

BAD = 5  # the id of the damaged sample; it lies in the second shard
SIDE = 16
Shards = Callable[..., Manifest]


@pytest.fixture
def shards(tmp_path: Path, jpegs: tuple[bytes, ...]) -> Shards:
    """Write the twelve photographs as three shards of four, those in `bad` cut in half."""

    def write(bad: tuple[int, ...] = ()) -> Manifest:
        folder = tmp_path / "shards"
        folder.mkdir()
        for shard in range(3):
            with webdataset.TarWriter(str(folder / f"s-{shard}.tar")) as tar:
                for number in range(4 * shard, 4 * shard + 4):
                    raw = jpegs[number]
                    raw = raw[: len(raw) // 2] if number in bad else raw
                    tar.write({"__key__": f"k{number}", "jpg": raw, "cls": number // 4})
        return index_shards(expand_shards([str(folder)]))

    return write


def batch_of(dataset: ShardDataset, ids: list[int], **request: int) -> Batch:
    return dataset.read_batch(BatchRequest(np.array(ids, dtype=np.int64), **request))


# What a batch is


def test_a_batch_is_uint8_in_channels_last_with_labels_and_ids(shards: Shards) -> None:
    batch = batch_of(ShardDataset(shards(), CenterCrop(SIDE, 20)), [9, 0, 4], epoch=2, step=7)
    assert batch["image"].shape == (3, 3, SIDE, SIDE)
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert batch["label"].tolist() == [2, 0, 1]  # id // 4
    assert batch["label"].dtype == torch.int64
    assert batch["id"].tolist() == [9, 0, 4]
    assert batch["flip"].tolist() == [False] * 3  # not asked for
    assert batch["flip"].dtype == torch.bool
    assert batch["copy"].tolist() == [0] * 3  # no repeats
    assert batch["copy"].dtype == torch.int64
    assert (batch["epoch"], batch["step"], batch["bad"]) == (2, 7, [])


def test_rows_hold_the_pixels_of_their_own_images(shards: Shards, jpegs: tuple[bytes, ...]) -> None:
    batch = batch_of(ShardDataset(shards(), CenterCrop(8, 8)), [11, 2])
    for row, number in enumerate((11, 2)):
        image = Image.open(io.BytesIO(jpegs[number]))
        short = min(image.size)
        wide, high = (int(8 * side / short) for side in image.size)
        left, top = round((wide - 8) / 2), round((high - 8) / 2)
        small = image.resize((wide, high), Image.Resampling.BILINEAR)
        expected = np.asarray(small.crop((left, top, left + 8, top + 8)), dtype=int)
        found = batch["image"][row].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(found - expected).max() <= 1


def test_one_channel(shards: Shards) -> None:
    batch = batch_of(ShardDataset(shards(), CenterCrop(SIDE, SIDE), channels=1), [0, 1])
    assert batch["image"].shape == (2, 1, SIDE, SIDE)


def test_padding_rows_are_black_and_count_for_nothing(shards: Shards) -> None:
    dataset = ShardDataset(shards(), CenterCrop(SIDE, SIDE))
    for ids in ([10, 11], []):
        batch = batch_of(dataset, ids, size=4)
        padding = slice(len(ids), 4)
        assert batch["image"].shape == (4, 3, SIDE, SIDE)
        assert batch["id"].tolist() == ids + [-1] * (4 - len(ids))
        assert (batch["label"][padding] == -1).all()
        assert (batch["image"][padding] == 0).all()


def test_a_single_sample_by_its_number(shards: Shards) -> None:
    dataset = ShardDataset(shards(), CenterCrop(SIDE, 20))
    sample = dataset[6]
    assert len(dataset) == 12
    assert sample["id"] == 6
    assert sample["key"] == "k6"
    assert sample["label"] == 1
    assert torch.equal(sample["image"], batch_of(dataset, [6])["image"][0])
    assert [sample["id"] for sample in dataset] == list(range(12))  # and it ends
    with pytest.raises(IndexError, match="sample 12 is outside 0 to 11"):
        dataset[12]


def test_by_default_the_centre_at_224_of_256(shards: Shards) -> None:
    assert ShardDataset(shards())[0]["image"].shape == (3, 224, 224)


def test_plain_files_have_no_labels(photo_tree: Path) -> None:
    dataset = ShardDataset(FileSamples(find_images(str(photo_tree))), CenterCrop(SIDE, SIDE))
    assert batch_of(dataset, [0, 11])["label"].tolist() == [-1, -1]


# What is random


def test_a_crop_depends_on_seed_epoch_and_id_only(shards: Shards) -> None:
    manifest = shards()

    def rows(ids: list[int], epoch: int = 0, seed: int = 0, step: int = 0) -> dict[int, bytes]:
        dataset = ShardDataset(manifest, RandomResizedCrop(SIDE), seed=seed)
        images = batch_of(dataset, ids, epoch=epoch, step=step)["image"]
        return {i: images[row].numpy().tobytes() for row, i in enumerate(ids)}

    everything = rows(list(range(12)))
    assert rows([7, 3]) | rows([3], step=9) == {i: everything[i] for i in (7, 3)}
    for other in (rows(list(range(12)), epoch=1), rows(list(range(12)), seed=1)):
        assert all(other[i] != everything[i] for i in range(12))


class Blank:
    """Very many one-pixel samples, for what depends on the id alone."""

    raw = b""

    def __init__(self) -> None:
        buffer = io.BytesIO()
        Image.new("L", (1, 1)).save(buffer, "PPM")
        self.raw = buffer.getvalue()

    def __len__(self) -> int:
        return 10**9

    def read(self, sample: int) -> tuple[bytes, int]:
        return self.raw, 0

    def key(self, sample: int) -> str:
        return str(sample)

    def origin(self, sample: int) -> str:
        return "blank"


def test_half_of_the_samples_are_flipped_by_seed_epoch_and_id_only() -> None:
    def flips(ids: list[int], epoch: int = 0, seed: int = 0) -> list[bool]:
        dataset = ShardDataset(Blank(), CenterCrop(1, 1), seed=seed, flip=True)
        return batch_of(dataset, ids, epoch=epoch)["flip"].tolist()

    ids = list(range(4000))
    first = flips(ids)
    assert abs(sum(first) - 2000) < 127  # 4 standard errors: 4 × √(4000 / 4)
    assert flips([3999, 17]) == [first[3999], first[17]]
    for other in (flips(ids, epoch=1), flips(ids, seed=1)):
        same = sum(a == b for a, b in zip(first, other, strict=True))
        assert abs(same - 2000) < 127  # independent: half agree


def test_flips_and_crops_are_drawn_independently() -> None:
    dataset = ShardDataset(Blank(), CenterCrop(1, 1), flip=True)
    crops: list[float] = []

    class Recording(RandomResizedCrop):
        def box(self, width, height, uniform):
            crops.append(float(uniform[0]))
            return super().box(width, height, uniform)

    dataset.crop = Recording(1)
    flips = batch_of(dataset, list(range(2000)))["flip"].numpy()
    assert abs(np.corrcoef(flips, crops)[0, 1]) < 4 / np.sqrt(2000)


def test_each_copy_of_a_sample_has_draws_of_its_own(shards: Shards) -> None:
    dataset = ShardDataset(shards(), RandomResizedCrop(SIDE), flip=True)
    ids = np.full(64, 7)
    request = BatchRequest(ids, epoch=3, copies=np.arange(64), size=65)
    batch = dataset.read_batch(request)
    assert batch["copy"].tolist() == [*range(64), 0]  # padding is no copy
    assert len({row.numpy().tobytes() for row in batch["image"][:64]}) == 64
    assert abs(int(batch["flip"][:64].sum()) - 32) <= 16  # 4 standard errors: 4 × √(64 / 4)
    # The first copy is what the sample is without repeats.
    alone = batch_of(dataset, [7], epoch=3)
    assert torch.equal(batch["image"][0], alone["image"][0])
    assert batch["flip"][0] == alone["flip"][0]
    # And a copy is the same wherever it stands.
    other = dataset.read_batch(BatchRequest(np.array([2, 7]), epoch=3, copies=np.array([0, 63])))
    assert torch.equal(batch["image"][63], other["image"][1])
    assert batch["flip"][63] == other["flip"][1]


# Damage


def test_in_training_a_corrupt_jpeg_is_replaced_by_a_good_one_of_its_batch(shards: Shards) -> None:
    dataset = ShardDataset(shards(bad=(BAD,)), CenterCrop(SIDE, SIDE), replace_bad=True)
    batch = batch_of(dataset, [9, BAD, 2])
    (bad,) = batch["bad"]
    assert isinstance(bad, BadSample)
    assert (bad.id, bad.key, bad.shard) == (BAD, "k5", "s-1.tar")
    assert bad.reason.startswith("OSError: image file is truncated")
    assert bad.replaced_by == 9
    assert torch.equal(batch["image"][1], batch["image"][0])
    assert batch["label"].tolist() == [2, 2, 0]  # ids 9, 9 and 2, // 4
    assert batch["id"].tolist() == [9, BAD, 2]  # the id asked for: it is this one that was consumed


def test_several_corrupt_ones_are_replaced_by_different_good_ones(shards: Shards) -> None:
    bad = (0, 1, 3)
    dataset = ShardDataset(shards(bad), CenterCrop(SIDE, SIDE), replace_bad=True)
    batch = batch_of(dataset, [0, 1, 7, 3, 10])
    # In turn: 7, 10, and 7 again.
    assert [(b.id, b.replaced_by) for b in batch["bad"]] == [(0, 7), (1, 10), (3, 7)]
    assert batch["label"].tolist() == [1, 2, 1, 1, 2]
    for row, donor in ((0, 2), (1, 4), (3, 2)):
        assert torch.equal(batch["image"][row], batch["image"][donor])


def test_each_copy_of_a_corrupt_sample_is_replaced_and_named(shards: Shards) -> None:
    dataset = ShardDataset(shards(bad=(BAD,)), RandomResizedCrop(SIDE), replace_bad=True)
    request = BatchRequest(np.array([9, BAD, 9, BAD]), copies=np.array([0, 0, 1, 1]))
    batch = dataset.read_batch(request)
    assert [(b.id, b.replaced_by) for b in batch["bad"]] == [(BAD, 9), (BAD, 9)]
    # In turn: by different copies, so no two rows are the same picture twice over.
    assert torch.equal(batch["image"][1], batch["image"][0])
    assert torch.equal(batch["image"][3], batch["image"][2])
    assert not torch.equal(batch["image"][1], batch["image"][3])


def test_in_evaluation_a_corrupt_row_stays_black_and_is_not_counted(shards: Shards) -> None:
    dataset = ShardDataset(shards(bad=(BAD,)), CenterCrop(SIDE, SIDE))
    batch = batch_of(dataset, [4, BAD], size=3)
    assert batch["label"].tolist() == [1, -1, -1]
    assert (batch["image"][1] == 0).all()
    assert batch["image"][0].any()
    assert [(b.id, b.replaced_by) for b in batch["bad"]] == [(BAD, -1)]


def test_a_decoder_that_fails_half_way_leaves_no_pixels(shards: Shards) -> None:
    class HalfWay:
        def decode(self, data, crop, uniform, out) -> None:
            out[: crop.size // 2] = 9
            raise DecodeError("half way")

    dataset = ShardDataset(shards(), CenterCrop(SIDE, SIDE), HalfWay())
    batch = batch_of(dataset, [1, 2])
    assert (batch["image"] == 0).all()
    assert [b.reason for b in batch["bad"]] == ["half way"] * 2


def test_a_training_batch_without_a_good_sample_names_the_command_that_looks(
    shards: Shards,
) -> None:
    manifest = shards(bad=(4, 5, 6, 7))
    dataset = ShardDataset(manifest, CenterCrop(SIDE, SIDE), replace_bad=True)
    with pytest.raises(DataFormatError) as error:
        batch_of(dataset, [6, 4])
    message = str(error.value)
    assert message.startswith(
        "none of the 2 samples of a micro-batch can be decoded, k6 for one "
        "(OSError: image file is truncated"
    )
    assert message.endswith(f"Look at the data with: resscale inspect {manifest.root}")


def test_a_corrupt_single_sample_is_an_error_with_its_key(shards: Shards) -> None:
    dataset = ShardDataset(shards(bad=(BAD,)), CenterCrop(SIDE, SIDE))
    with pytest.raises(DataFormatError, match="sample k5: OSError: image file is truncated"):
        dataset[BAD]


def test_a_shard_truncated_while_in_use_is_an_error_not_a_bad_sample(shards: Shards) -> None:
    manifest = shards()
    dataset = ShardDataset(manifest, CenterCrop(SIDE, SIDE), replace_bad=True)
    batch_of(dataset, [8, 11])  # index and descriptor are in memory now
    path = manifest.shard_path(2)
    with path.open("r+b") as file:
        file.truncate(2048)
    with pytest.raises(DataFormatError) as error:
        batch_of(dataset, [0, 11])
    assert str(error.value).startswith(f"{path} ends at byte ")
    assert str(error.value).endswith(": truncated or changed while in use.")
    batch_of(dataset, [0, 1])  # the other shards are well


class Signed(Blank):
    """Samples of a shard whose address carries a signature; only those up to 9 are images."""

    def read(self, sample: int) -> tuple[bytes, int]:
        return (self.raw if sample < 10 else b"damaged"), 0

    def origin(self, sample: int) -> str:
        return "https://host/sets/a.tar?sig=ab/cd&b=1"


def test_a_bad_sample_names_its_shard_and_no_signature() -> None:
    dataset = ShardDataset(Signed(), CenterCrop(1, 1), replace_bad=True)
    (bad,) = batch_of(dataset, [3, 10])["bad"]
    assert bad.shard == "a.tar"
    with pytest.raises(DataFormatError, match=r"inspect https://host/sets$"):
        batch_of(dataset, [10])
