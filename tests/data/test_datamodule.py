"""What the user says of the data, and what is refused before a process or a GPU is taken."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset

from resscale.data import Manifest, ShardDataModule
from resscale.data.augment import CenterCrop, PadCrop, RandomResizedCrop
from resscale.data.decode_pillow import PillowDecoder
from resscale.data.decoders import choose_decoder
from resscale.data.index_shards import expand_shards, index_shards
from resscale.data.progressive import ProgressiveConfig
from resscale.errors import DataFormatError, UserInputError


@pytest.fixture
def shards(foreign_shards: Path) -> str:
    """Twelve photographs of three classes in three shards, indexed."""
    index_shards(expand_shards([str(foreign_shards)]), classes=("cat", "dog", "newt"))
    return str(foreign_shards)


def module(**options) -> ShardDataModule:
    small = {"global_batch_size": 4, "image_size": 16, "num_workers": 0}
    return ShardDataModule(**(small | options))


def on_rank(data: ShardDataModule, rank: int, world_size: int, limit=1.0) -> ShardDataModule:
    """Stand in for the trainer of one rank of several."""
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        num_devices=world_size,
        limit_train_batches=limit,
        accumulate_grad_batches=1,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    return data


# What is refused


@pytest.mark.parametrize("split", ["train", "val", "test", "predict"])
def test_a_split_that_is_not_set_says_how_to_set_it(split: str) -> None:
    with pytest.raises(UserInputError) as error:
        module().check((split,), num_classes=3, world_size=1)
    expected = f"data.{split} is not set: name a folder of shards with --data.{split} FOLDER."
    assert str(error.value) == expected


def test_no_shards_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match=r"No shards at .*it holds no \.tar file.*pack"):
        module(train=str(tmp_path)).check(("train",), 3, 1)
    with pytest.raises(DataFormatError, match="there is no such folder"):
        module(train=str(tmp_path / "none")).check(("train",), 3, 1)


def test_a_shard_of_another_size_than_its_manifest_says(shards: str) -> None:
    path = Path(shards) / "part-0001.tar"
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 512)
    with pytest.raises(DataFormatError) as error:
        module(val=shards).check(("val",), 3, 1)
    message = f"{path} has {size - 512} bytes, its manifest says {size}: truncated. "
    assert str(error.value).startswith(message)


def test_a_shard_that_is_missing(shards: str) -> None:
    (Path(shards) / "part-0002.tar").unlink()
    with pytest.raises(DataFormatError, match=r"part-0002\.tar is missing, the manifest lists it"):
        module(test=shards).check(("test",), 3, 1)


def test_labels_outside_the_models_classes(shards: str) -> None:
    module(train=shards).check(("train",), num_classes=3, world_size=1)
    with pytest.raises(DataFormatError) as error:
        module(train=shards).check(("train",), num_classes=2, world_size=1)
    assert str(error.value) == (
        f"{shards}: 4 samples have labels from 2 to 2, the model has num_classes=2 "
        f"(labels 0 to 1). Set --model.num_classes 3."
    )


@pytest.fixture
def unlabelled(tmp_path: Path, jpegs: tuple[bytes, ...]) -> str:
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "a.tar")) as tar:
        for number in range(5):
            tar.write({"__key__": f"x{number}", "jpg": jpegs[number]})
    index_shards([folder / "a.tar"])
    return str(folder)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_samples_without_labels_are_for_prediction_only(unlabelled: str, split: str) -> None:
    with pytest.raises(DataFormatError) as error:
        module(**{split: unlabelled}).check((split,), 3, 1)
    assert str(error.value) == (
        f"{unlabelled}: 5 of 5 samples have no .cls label, so they cannot be data.{split}; "
        f"data.predict takes them."
    )
    data = module(predict=unlabelled)
    data.check(("predict",), 3, 1)
    batches = list(data.predict_dataloader())
    assert [b["id"].tolist() for b in batches] == [[0, 1, 2, 3], [4, -1, -1, -1]]
    assert all((batch["label"] == -1).all() for batch in batches)


def test_a_global_batch_larger_than_the_data(shards: str) -> None:
    module(train=shards, global_batch_size=12).check(("train",), 3, 1)
    with pytest.raises(UserInputError) as error:
        module(train=shards, global_batch_size=13).check(("train",), 3, 1)
    assert str(error.value) == (
        f"global_batch_size=13 is more than the 12 training samples in {shards}; choose 12 or less."
    )


@pytest.mark.parametrize(
    "name", ["image_size", "eval_size", "eval_resize", "eval_batch_size", "global_batch_size"]
)
def test_sizes_begin_at_one(name: str) -> None:
    with pytest.raises(UserInputError, match=rf"data\.{name}=0 must be at least 1\."):
        ShardDataModule(**{name: 0})


def test_the_number_of_reading_processes_begins_at_zero() -> None:
    with pytest.raises(UserInputError, match=r"data\.num_workers=-1 must be 0 or more\."):
        ShardDataModule(num_workers=-1)


def test_a_global_batch_that_the_ranks_do_not_divide(shards: str) -> None:
    data = module(train=shards, global_batch_size=10)
    with pytest.raises(UserInputError, match="10 is not divisible by 4 ranks; choose 8 or 12"):
        data.check(("train",), 3, world_size=4)


def test_an_accumulation_of_the_users_own_is_refused_where_it_differs(shards: str) -> None:
    data = on_rank(module(train=shards, global_batch_size=12, micro_batch_size=2), 0, 2)
    data.setup("fit")
    assert data.trainer.accumulate_grad_batches == 3  # 12 / 2 ranks / 2
    data.trainer.accumulate_grad_batches = 4
    with pytest.raises(UserInputError, match=r"accumulate_grad_batches=4 is not.*\(here 3\)"):
        data.setup("fit")
    data.setup("validate")  # of no concern there


def test_an_unknown_built_in_set_suggests_the_nearest() -> None:
    with pytest.raises(UserInputError, match="Did you mean 'builtin:digits/train'"):
        module(train="builtin:digit/train").check(("train",), 10, 1)


# Crops


@pytest.mark.parametrize(
    ("options", "crop"),
    [
        ({}, CenterCrop(224, 256)),  # the ImageNet reference
        ({"image_size": 176}, CenterCrop(176, 201)),  # round(176 × 256 / 224 = 201.1)
        ({"image_size": 180}, CenterCrop(180, 206)),  # round(205.7)
        ({"image_size": 176, "eval_size": 224}, CenterCrop(224, 256)),
        ({"eval_resize": 232}, CenterCrop(224, 232)),
        ({"train_crop": "pad", "image_size": 32}, CenterCrop(32, 32)),
        ({"train_crop": "center", "image_size": 28, "eval_resize": 30}, CenterCrop(28, 30)),
    ],
)
def test_the_evaluation_crop_follows_from_the_training_one(options, crop: CenterCrop) -> None:
    assert ShardDataModule(**options).eval_crop == crop


def test_each_training_crop_has_its_options() -> None:
    random = ShardDataModule(image_size=160, scale=(0.3, 1.0)).train_crop
    assert random == RandomResizedCrop(160, scale=(0.3, 1.0))
    assert ShardDataModule(train_crop="pad", image_size=32, pad=2).train_crop == PadCrop(32, 2)
    assert ShardDataModule(train_crop="center", image_size=32).train_crop == CenterCrop(32, 32)


def test_a_network_must_take_all_sizes_of_training_and_evaluation() -> None:
    assert ShardDataModule(image_size=32, eval_size=40).image_sizes == (32, 40)
    growing = ProgressiveConfig(from_size=16, until_epoch=4, multiple=8)
    data = ShardDataModule(image_size=32, progressive=growing)
    assert data.image_sizes == (16, 24, 32)
    assert [data.size_at(epoch) for epoch in range(5)] == [16, 16, 24, 32, 32]
    assert data.train_crop.size == 32  # what memory must hold
    assert ShardDataModule(image_size=32, ratio=(0.5, 2.0)).train_crop.ratio == (0.5, 2.0)


# Loaders


def test_training_batches_come_in_the_order_of_the_users_options(shards: str) -> None:
    data = module(train=shards, shuffle="full", seed=7, micro_batch_size=2, channels=1)
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 6  # 12 / 2
    ids = [i for batch in batches for i in batch["id"].tolist()]
    order = data.order()
    assert (order.shuffle, order.seed, order.window) == ("full", 7, 65_536)
    assert ids == [i for step in range(3) for i in order.global_batch(step).tolist()]
    assert batches[0]["image"].shape == (2, 1, 16, 16)
    assert any(batch["flip"].any() for batch in batches)
    never = module(train=shards, flip=False).train_dataloader()
    assert not any(batch["flip"].any() for batch in never)


def test_training_begins_behind_the_samples_seen(shards: str) -> None:
    data = module(train=shards)
    whole = [batch["id"].tolist() for batch in data.train_dataloader()]
    data.samples_seen = 8  # two of three steps
    assert [batch["id"].tolist() for batch in data.train_dataloader()] == whole[2:]


def test_a_damaged_image_is_replaced_in_training_and_left_out_in_evaluation(
    tmp_path: Path, jpegs: tuple[bytes, ...]
) -> None:
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as tar:
        for number in range(4):
            raw = jpegs[number][: 500 if number == 1 else None]
            tar.write({"__key__": f"x{number}", "jpg": raw, "cls": number})
    index_shards([tmp_path / "a.tar"])
    data = module(train=str(tmp_path), val=str(tmp_path))
    (train,), (val,) = list(data.train_dataloader()), list(data.val_dataloader())
    assert [(bad.id, bad.replaced_by >= 0) for bad in train["bad"]] == [(1, True)]
    assert (train["label"] >= 0).all()
    assert [(bad.id, bad.replaced_by) for bad in val["bad"]] == [(1, -1)]
    assert val["label"].tolist() == [0, -1, 2, 3]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 13])
@pytest.mark.parametrize("split", ["val", "test"])
def test_evaluation_reads_each_id_once_on_any_number_of_ranks(
    shards: str, split: str, world_size: int
) -> None:
    ids: list[int] = []
    shapes = set()
    for rank in range(world_size):
        data = on_rank(module(**{split: shards}, eval_batch_size=2), rank, world_size)
        loader = getattr(data, f"{split}_dataloader")()
        batches = list(loader)
        shapes.add((len(batches), *{tuple(batch["image"].shape) for batch in batches}))
        ids += [i for batch in batches for i in batch["id"].tolist() if i >= 0]
    assert ids == list(range(12))
    assert len(shapes) == 1  # equally many batches of one size on each rank


def test_an_evaluation_batch_is_no_larger_than_a_ranks_part(shards: str) -> None:
    data = on_rank(module(val=shards, eval_batch_size=500), 0, 5)
    (batch,) = list(data.val_dataloader())
    assert batch["image"].shape[0] == 3  # ceil(12 / 5): no 497 rows of padding


@pytest.mark.parametrize(("limit", "steps"), [(1.0, 3), (4, 2), (0.34, 1)])
def test_a_limited_epoch_is_counted_in_steps(shards: str, limit: float, steps: int) -> None:
    # 3 steps of 2 micro-batches: 4 of them are 2 steps, int(0.34 × 6) = 2 are one.
    data = on_rank(module(train=shards, micro_batch_size=2), 0, 1, limit)
    assert data.steps_per_epoch() == steps
    loader = data.train_dataloader()
    loader.load_state_dict({"samples_seen": 4 * steps})
    assert loader.start_of_epoch() == (1, 0)


def test_plain_image_files_are_predicted_by_their_paths(photo_tree: Path) -> None:
    data = module(predict=str(photo_tree), eval_batch_size=5)
    data.check(("predict",), num_classes=3, world_size=1)
    batches = list(data.predict_dataloader())
    assert [batch["image"].shape[0] for batch in batches] == [5, 5, 5]
    samples = data.samples("predict")
    paths = [samples.key(i) for batch in batches for i in batch["id"].tolist() if i >= 0]
    assert paths == [str(path) for path in sorted(photo_tree.rglob("*.jpg"))]
    one = module(predict=str(photo_tree / "cat" / "0.jpg"))
    assert len(one.samples("predict")) == 1


def test_shards_are_predicted_by_their_keys(shards: str) -> None:
    for location in (shards, f"{shards}/manifest.json"):
        samples = module(predict=location).samples("predict")
        assert [samples.key(i) for i in (0, 11)] == ["sample000", "sample011"]


def test_a_folder_without_images_is_refused_for_prediction(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="holds neither shards with a manifest nor images"):
        module(predict=str(tmp_path)).check(("predict",), 3, 1)


def test_the_manifest_is_read_once(shards: str) -> None:
    data = module(train=shards)
    manifest = data.manifest("train")
    shutil.rmtree(shards)
    assert data.manifest("train") is manifest
    assert isinstance(manifest, Manifest)


def test_the_built_in_digits_need_no_set_up() -> None:
    data = module(train="builtin:digits/train", val="builtin:digits/test", image_size=8)
    data.check(("train", "val"), num_classes=10, world_size=1)
    assert data.manifest("train").num_samples == 1437
    assert data.order().num_steps == 359  # 1437 // 4
    labels = np.concatenate([batch["label"].numpy() for batch in data.val_dataloader()])
    assert np.bincount(labels).sum() == 360


def test_only_what_the_model_needs_goes_to_the_device(shards: str) -> None:
    data = module(train=shards)
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert {name: moved[name].device.type for name in ("image", "label", "flip", "id")} == {
        "image": "meta",
        "label": "meta",
        "flip": "meta",
        "id": "cpu",
    }
    assert moved["copy"].device.type == "cpu"
    assert batch["image"].device.type == "cpu"  # the loader's own batch is as it was


@pytest.mark.parametrize(("cores", "ranks", "workers"), [(16, 4, 3), (2, 1, 1), (1, 1, 0)])
def test_reading_processes_default_to_a_ranks_share_of_the_cores_less_one(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, workers: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    data = on_rank(ShardDataModule(), 0, ranks)
    assert data._workers().num_workers == workers
    assert data._workers().start_method == "forkserver"
    assert ShardDataModule(num_workers=5)._workers().num_workers == 5


def test_the_decoder_that_was_asked_for_reads_all_splits(shards: str) -> None:
    data = module(train=shards, val=shards, decoder="pillow")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert isinstance(loader.dataset.decoder, PillowDecoder)
    assert data.decoder_name == "pillow"


def test_the_decoder_is_the_one_that_the_run_has_used() -> None:
    data = module()
    assert data.decoder_name == choose_decoder()
    data.decoder_before = "pillow"
    assert data.decoder_name == "pillow"
    assert isinstance(data.build_decoder(), PillowDecoder)


def test_an_unknown_decoder_is_refused_before_the_data_is_read() -> None:
    with pytest.raises(UserInputError, match=r"data\.decoder=pilow is not known"):
        module(train="nothing", decoder="pilow").check(("train",), 3, 1)
