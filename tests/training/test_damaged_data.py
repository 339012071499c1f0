"""Damaged JPEGs in training: counted, named, replaced; past the budget the run ends with 70."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_sample_images

from rank_server import Ended, RankServer
from resscale.cli import main

SAMPLES = 64


def write_shards(folder: Path, damaged: set[int]) -> Path:
    """64 real JPEGs of 24 pixels in 2 classes; of the damaged ones only the first half is there."""
    folder.mkdir(parents=True)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    with webdataset.ShardWriter(str(folder / "part-%03d.tar"), maxcount=16, verbose=0) as writer:
        for number in range(SAMPLES):
            buffer = io.BytesIO()
            left = 8 * number
            photos[number % 2].crop((left, 50, left + 24, 74)).save(buffer, "JPEG")
            raw = buffer.getvalue()
            if number in damaged:
                raw = raw[: len(raw) // 2]
            writer.write({"__key__": f"photo{number:03d}", "jpg": raw, "cls": number % 2})
    assert main(["index", str(folder)]) == 0
    return folder


def fit(rank_server: RankServer, folder: Path, run_dir: Path, *more: str) -> Ended:
    arguments = [
        "--model.model=resnet20_cifar", "--model.num_classes=2",
        f"--data.train={folder}", "--data.image_size=16", "--data.train_crop=pad",
        "--data.global_batch_size=16", "--data.micro_batch_size=8", "--data.num_workers=1",
        "--data.log_sample_ids=true",
        "--trainer.max_epochs=1", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu",
        f"--run_dir={run_dir}", *more,
    ]  # fmt: skip
    return rank_server.run("fit", *arguments, cwd=folder)


def ledger(run_dir: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "bad_sample"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_damaged_jpeg_is_counted_named_and_replaced_and_ranks_stay_in_step(
    rank_server: RankServer, tmp_path: Path, ranks: int
) -> None:
    folder = write_shards(tmp_path / "shards", damaged={5, 40})
    # 2 of 64 are damaged; a budget of 0.05 × 64 = 3.2 allows it.
    more = [f"--trainer.devices={ranks}", "--data.max_bad_fraction=0.05"]
    more += ["--trainer.strategy=ddp"] if ranks > 1 else []
    done = fit(rank_server, folder, tmp_path / "run", *more)
    assert done.code == 0, done.said
    assert "2 damaged" in done.said

    bad = sorted(ledger(tmp_path / "run"), key=lambda entry: str(entry["key"]))
    assert [entry["key"] for entry in bad] == ["photo005", "photo040"]
    assert [entry["shard"] for entry in bad] == ["part-000.tar", "part-002.tar"]  # 16 a shard
    for entry in bad:
        assert "truncated" in str(entry["reason"]).lower()
        assert entry["replaced_by"] not in (5, 40, -1)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["bad_samples"]) == ("done", 2)
    # The damaged ids stand in the log where the order put them: 4 steps × 16 = 64, each once.
    logged = [
        sample
        for file in (tmp_path / "run" / "samples").glob("rank-*.jsonl")
        for line in file.read_text().splitlines()
        for sample in json.loads(line)["ids"]
    ]
    assert sorted(logged) == list(range(SAMPLES))


@pytest.mark.parametrize("ranks", [1, 2])
def test_more_damaged_samples_than_the_budget_end_the_run_with_70_and_the_list(
    rank_server: RankServer, tmp_path: Path, ranks: int
) -> None:
    folder = write_shards(tmp_path / "shards", damaged={1, 2, 3, 17, 33})
    # 0.05 × 64 = 3.2: the fourth is too many.
    more = [f"--trainer.devices={ranks}", "--data.max_bad_fraction=0.05"]
    more += ["--trainer.strategy=ddp"] if ranks > 1 else []
    stopped = fit(rank_server, folder, tmp_path / "run", *more)
    assert stopped.code == 70, stopped.said
    assert "data.max_bad_fraction=0.05" in stopped.said
    assert "Traceback" not in stopped.said
    for entry in ledger(tmp_path / "run")[:4]:
        assert str(entry["key"]) in stopped.said
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"


def test_a_shard_cut_short_after_the_start_ends_the_run_with_one_message(
    rank_server: RankServer, tmp_path: Path
) -> None:
    folder = write_shards(tmp_path / "shards", damaged=set())
    shard = folder / "part-001.tar"
    shard.write_bytes(shard.read_bytes()[:-4096])
    refused = fit(rank_server, folder, tmp_path / "run")
    assert refused.code == 2
    assert "part-001.tar" in refused.said
    assert "truncated" in refused.said
    assert "Traceback" not in refused.said
    assert not (tmp_path / "run").exists()
