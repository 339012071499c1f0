"""What inspect tells, on shards whose facts are known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fault_server import serve
from PIL import Image

from resscale.data.contact_sheet import write_contact_sheet
from resscale.data.index_shards import expand_shards, index_shards
from resscale.data.inspect import batch_mixing, describe, inspect_shards, label_mixing
from resscale.data.manifest import Manifest, ShardInfo
from resscale.errors import DataFormatError


@pytest.fixture
def shards(foreign_shards: Path) -> Path:
    index_shards(expand_shards([str(foreign_shards)]), ("cat", "dog", "newt"))
    return foreign_shards


def damage(shards: Path) -> None:
    """Overwrite the beginning of the second shard's first image."""
    path = shards / "part-0001.tar"
    raw = bytearray(path.read_bytes())
    start = raw.index(b"\xff\xd8\xff")
    raw[start : start + 100] = bytes(100)
    path.write_bytes(raw)


def test_facts(shards: Path, jpegs: tuple[bytes, ...]) -> None:
    report = inspect_shards(str(shards), check=True)
    assert sorted(report.sizes.tolist()) == sorted(len(raw) for raw in jpegs)
    assert sorted(report.decoded.widths.tolist()) == [96 + 4 * n for n in range(12)]
    assert sorted(report.decoded.heights.tolist()) == [80 + 2 * n for n in range(12)]
    assert report.decoded.kinds == {"JPEG RGB": 12}
    text = describe(report)
    assert "samples  12 in 3 shards of 4 to 4" in text
    assert "min 4 (cat), median 4, max 4 (cat); imbalance 1.00" in text
    assert "width    96 | " in text
    assert "JPEG RGB 12, of 12 decoded" in text
    assert "source   resscale index" in text
    assert "bad      none of 12 decoded" in text


def test_default_decodes_a_sample(shards: Path) -> None:
    report = inspect_shards(str(shards), images=5)
    assert len(report.decoded.widths) == 5
    assert "none of 5 decoded (--check decodes all)" in describe(report)


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_samples_are_listed(shards: Path, processes: int) -> None:
    damage(shards)
    report = inspect_shards(str(shards), check=True, processes=processes)
    assert [(shard, key) for shard, key, _ in report.bad] == [("part-0001.tar", "sample004")]
    assert "bad      1 of 12 decoded\n  part-0001.tar: sample004: not an image" in describe(report)


def test_order_sorted_by_class_is_told(shards: Path) -> None:
    labels = np.repeat(np.arange(100), 50)
    sorted_order = label_mixing(labels)
    assert sorted_order.run == 256
    assert sorted_order.fraction < 0.5  # about 6 of 100 classes in a run: 2.4 of 6.3 bits
    shuffled = label_mixing(np.random.default_rng(1).permutation(labels))
    assert shuffled.fraction == pytest.approx(1, abs=0.02)
    assert shuffled.is_shuffled
    assert not sorted_order.is_shuffled
    assert label_mixing(np.zeros(10, np.int64)).fraction == 1
    assert "sorted by class: pack again" in describe(inspect_shards(str(shards)))


def test_the_mix_of_batches_is_told_for_each_shuffle(shards: Path) -> None:
    manifest = Manifest((), [ShardInfo(f"{n}.tar", 50, 0, "") for n in range(200)], (100,) * 100)
    found = dict(batch_mixing(manifest, np.repeat(np.arange(100), 100)))  # sorted by class
    assert found["none"].is_poor
    # 10,000 samples are less than a window.
    assert not found["window 65,536"].is_poor
    assert not found["full"].is_poor
    assert [entropy.samples for entropy in found.values()] == [256] * 3
    text = describe(inspect_shards(str(shards)))
    line = "label entropy of batches of 12, of what is possible"  # all there are
    assert f"shuffle  {line}: window 65,536 100%, full 100%, none 100%" in text


@pytest.mark.parametrize("seed", range(5))
def test_chance_in_a_small_set_is_not_taken_for_sorting(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 10, 100)
    assert label_mixing(labels).is_shuffled


def test_shards_without_labels(tmp_path: Path, write_tar, jpegs: tuple[bytes, ...]) -> None:
    path = write_tar(tmp_path / "a.tar", [("x.jpg", jpegs[0]), ("y.jpg", jpegs[1])])
    index_shards([path])
    text = describe(inspect_shards(str(tmp_path)))
    assert "classes  no labels" in text
    assert "order    no labels to judge by" in text


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_of_a_server(
    shards: Path, jpegs: tuple[bytes, ...], indexed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESSCALE_CACHE", str(shards.parent / "cache"))
    local = inspect_shards(str(shards), check=True)
    if not indexed:
        (shards / "manifest.json").unlink()
    with serve(shards) as server:
        report = inspect_shards(server.url, check=True)
        assert describe(report).startswith(server.url)
        out = shards.parent / "sheet.png"
        size = write_contact_sheet(report.manifest, out)
    with Image.open(out) as sheet:
        assert sheet.size == size
    assert report.decoded.kinds == local.decoded.kinds
    assert report.sizes.tolist() == [len(jpeg) for jpeg in jpegs]


def test_classes_without_samples_are_told(shards: Path) -> None:
    index_shards(expand_shards([str(shards)]), ("cat", "dog", "newt", "owl"))
    assert "; 1 without any" in describe(inspect_shards(str(shards)))


def test_damaged_shards_are_refused(shards: Path) -> None:
    path = shards / "part-0001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataFormatError, match="truncated"):
        inspect_shards(str(shards))


def test_an_index_of_another_length_than_the_manifest_says_is_told(shards: Path) -> None:
    manifest = Manifest.load(shards)
    rows = [dataclasses.replace(row, samples=5) for row in manifest.shards]
    dataclasses.replace(manifest, shards=rows).save(shards)
    with pytest.raises(DataFormatError, match="an index lists 4 samples, the manifest 5"):
        inspect_shards(str(shards))


def test_sizes_and_labels_on_a_server_are_those_of_the_folder(shards: Path) -> None:
    local = inspect_shards(str(shards), images=1)
    with serve(shards) as server:
        there = inspect_shards(server.url, images=1)
    np.testing.assert_array_equal(there.sizes, local.sizes)
    assert there.mixing == local.mixing
    assert there.batches == local.batches
