"""Packing as a whole: what is read back, what is left out, and that the bytes are always the same.

```
pack ──────────────────────────── bytes A
pack --processes 3 ────────────── bytes A
pack, kill -9 in the middle, pack  bytes A
```
"""

import gc
import io
import json
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from resscale.data.digits import digits_splits, load_digits
from resscale.data.manifest import MANIFEST_NAME, Manifest
from resscale.data.pack import Packed, pack_splits
from resscale.data.pack_part import WHOLE, temporary_name
from resscale.data.pack_plan import PackOptions
from resscale.data.pack_state import STATE_NAME
from resscale.data.shard_index import ShardIndex
from resscale.data.sources import imagefolder_splits
from resscale.errors import DataFormatError, UserInputError

Contents = Callable[[Path], dict[str, bytes]]


def pack_photos(source: Path, out: Path, **options: Any) -> Packed:
    (packed,) = pack_splits(imagefolder_splits(source), out, PackOptions(**options), "test")
    return packed


def read_with_webdataset(folder: Path, *decoders: str) -> list[dict[str, Any]]:
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files open
        samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode(*decoders))
        gc.collect()
    return samples


def test_webdataset_reads_back_keys_labels_and_bytes(
    photo_tree: Path, tmp_path: Path, jpegs: tuple[bytes, ...]
) -> None:
    packed = pack_photos(photo_tree, tmp_path / "out", samples_per_shard=5)
    assert [shard.samples for shard in packed.manifest.shards] == [5, 5, 2]
    samples = read_with_webdataset(packed.folder)
    assert len(samples) == 12
    for sample in samples:
        class_name, number = sample["__key__"].split("_")
        assert packed.manifest.classes[sample["cls"]] == class_name
        assert sample["jpg"] == jpegs[int(number)]  # the original file, byte for byte
    decoded = read_with_webdataset(packed.folder, "rgb8")
    for sample in decoded:
        original = Image.open(io.BytesIO(jpegs[int(sample["__key__"].split("_")[1])]))
        np.testing.assert_array_equal(sample["jpg"], np.asarray(original))


def test_index_and_manifest_agree_with_the_shards(photo_tree: Path, tmp_path: Path) -> None:
    packed = pack_photos(photo_tree, tmp_path / "out", samples_per_shard=5)
    manifest = Manifest.load(tmp_path / "out" / "train")
    assert manifest == packed.manifest
    manifest.check_sizes()
    assert manifest.wrong_checksums() == []
    assert manifest.class_counts == (4, 4, 4)
    samples = iter(read_with_webdataset(packed.folder))
    for number in range(len(manifest.shards)):
        index = ShardIndex.load(manifest.index_path(number))
        raw = manifest.shard_path(number).read_bytes()
        for key, offset, size, label in zip(
            index.keys, index.offsets, index.sizes, index.labels, strict=True
        ):
            sample = next(samples)
            assert sample["__key__"] == key.decode()
            assert sample["jpg"] == raw[offset : offset + size]
            assert sample["cls"] == label


def test_raw_pixels_survive_as_png(tmp_path: Path) -> None:
    options = PackOptions(format="png", limit=40)
    pack_splits(digits_splits()[:1], tmp_path, options, "test")
    images, labels = load_digits()
    samples = read_with_webdataset(tmp_path / "train", "l8")
    assert len(samples) == 40
    for sample in samples:
        row = int(sample["__key__"].removeprefix("train-"))
        np.testing.assert_array_equal(np.asarray(sample["png"]).squeeze(), images[row])
        assert sample["cls"] == labels[row]


def test_bytes_do_not_depend_on_the_processes(
    photo_tree: Path, tmp_path: Path, contents: Contents
) -> None:
    for processes in (1, 3):
        out = tmp_path / f"with-{processes}"
        pack_photos(photo_tree, out, samples_per_shard=2, resize=64, processes=processes)
    one, three = contents(tmp_path / "with-1"), contents(tmp_path / "with-3")
    assert one == three
    assert len(one) == 13  # 6 shards, 6 indices, the manifest; nothing temporary, no state


def test_packing_again_changes_nothing(
    photo_tree: Path, tmp_path: Path, contents: Contents
) -> None:
    pack_photos(photo_tree, tmp_path / "out")
    before = contents(tmp_path / "out")
    stamp = (tmp_path / "out" / "train" / MANIFEST_NAME).stat().st_mtime_ns
    again = pack_photos(photo_tree, tmp_path / "out")
    assert again.seconds == 0
    assert contents(tmp_path / "out") == before
    assert (tmp_path / "out" / "train" / MANIFEST_NAME).stat().st_mtime_ns == stamp


KILLED = """
import sys, time
from pathlib import Path
import resscale.data.pack as pack
from resscale.data.digits import digits_splits
from resscale.data.pack_plan import PackOptions
if __name__ == "__main__":
    options = PackOptions(samples_per_shard=20, processes=int(sys.argv[2]))
    pack.pack_splits(digits_splits()[:1], Path(sys.argv[1]), options, "test")
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_kill_in_the_middle_and_run_again_gives_the_same_bytes(
    tmp_path: Path, contents: Contents, processes: int
) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path / "out"), str(processes)]
    state = tmp_path / "out" / "train" / STATE_NAME
    process = subprocess.Popen(command)
    while process.poll() is None and (not state.exists() or len(state.read_bytes()) < 1500):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = {path.name: path.stat().st_ino for path in state.parent.glob("*.tar")}
    finished = len(state.read_text().splitlines()) - 1
    assert 0 < finished < 72  # 1,437 samples of 20 a shard are 72 shards
    left = state.parent / temporary_name("train-000071.tar", WHOLE.tag)
    left.write_bytes(b"left by a killed worker")

    options = PackOptions(samples_per_shard=20)
    pack_splits(digits_splits()[:1], tmp_path / "out", options, "test")
    pack_splits(digits_splits()[:1], tmp_path / "reference", options, "test")
    assert contents(tmp_path / "out") == contents(tmp_path / "reference")
    same = [n for n, inode in kept.items() if (state.parent / n).stat().st_ino == inode]
    assert len(same) >= finished  # what was finished has not been written again


def test_unusable_samples_are_left_out_and_listed(photo_tree: Path, tmp_path: Path) -> None:
    cat = photo_tree / "cat"
    (cat / "0.jpg").write_bytes((cat / "0.jpg").read_bytes()[:-100])
    (cat / "1.jpg").write_bytes(b"")
    (cat / "2.jpg").write_bytes(b"no image")
    (cat / "gone.jpg").symlink_to("nowhere")
    packed = pack_photos(photo_tree, tmp_path / "out", samples_per_shard=3)
    assert packed.left_out == 4
    assert packed.manifest.num_samples == 9  # 12 + 1 link - 4
    assert packed.manifest.class_counts == (1, 4, 4)
    lines = (packed.folder / "left_out.jsonl").read_text().splitlines()
    reasons = {(entry := json.loads(line))["key"]: entry["reason"] for line in lines}
    assert "truncated" in reasons["cat_0"]
    assert reasons["cat_1"] == "empty file"
    assert reasons["cat_2"].startswith("not an image")
    assert reasons["cat_gone"].startswith("cannot be read")
    assert json.loads(lines[0])["path"].startswith(str(cat))
    again = pack_photos(photo_tree, tmp_path / "out", samples_per_shard=3)
    assert again.left_out == 4


def test_shard_of_bad_samples_only_is_not_listed(photo_tree: Path, tmp_path: Path) -> None:
    for path in photo_tree.rglob("*.jpg"):
        if path.name != "7.jpg":
            path.write_bytes(b"")
    packed = pack_photos(photo_tree, tmp_path / "out", samples_per_shard=1)
    assert packed.manifest.num_samples == 1
    assert len(list(packed.folder.glob("*.tar"))) == 1
    packed.manifest.check_sizes()


def test_nothing_usable_is_an_error(photo_tree: Path, tmp_path: Path) -> None:
    for path in photo_tree.rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(DataFormatError, match=r"None of the 12 samples .* empty file"):
        pack_photos(photo_tree, tmp_path / "out")


def test_changed_options_are_refused_and_named(photo_tree: Path, tmp_path: Path) -> None:
    pack_photos(photo_tree, tmp_path / "out")
    with pytest.raises(UserInputError, match=r"other options .*resize was None, is 64.*rm -r"):
        pack_photos(photo_tree, tmp_path / "out", resize=64)


def test_another_data_set_is_refused(photo_tree: Path, tmp_path: Path, contents: Contents) -> None:
    pack_photos(photo_tree, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserInputError, match=r"holds another data set.*12 samples of 3 classes"):
        pack_splits(digits_splits()[:1], tmp_path / "out", PackOptions(), "test")
    assert contents(tmp_path / "out") == before


def test_refusal_comes_before_any_split_is_packed(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "mine.txt").write_text("precious")
    with pytest.raises(UserInputError, match=r"is not empty: .* such as 'mine\.txt'"):
        pack_splits(digits_splits(), tmp_path, PackOptions(), "test")
    assert not (tmp_path / "train").exists()


def test_shards_that_lost_a_file_are_not_called_finished(photo_tree: Path, tmp_path: Path) -> None:
    packed = pack_photos(photo_tree, tmp_path / "out")
    packed.manifest.shard_path(0).unlink()
    with pytest.raises(DataFormatError, match="is missing, the manifest lists it"):
        pack_photos(photo_tree, tmp_path / "out")


def test_full_disk_is_one_message(photo_tree: Path, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from resscale.cli_data import run_pack\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"  # bytes per file
        "run_pack(sys.argv[1:])\n"
    )
    command = ["imagefolder", str(photo_tree), str(tmp_path / "out"), "--processes", "1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, check=False
    )
    assert "UserInputError: Cannot write into" in done.stderr
    assert "File too large. Free some space" in done.stderr
    assert not list((tmp_path / "out").rglob("*.tmp"))
