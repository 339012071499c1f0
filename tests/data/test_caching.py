"""The user's options of caching, and training over a server that fails as over a local disk."""

from __future__ import annotations

import csv
import json
import shutil
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fault_server import FaultServer, serve

from resscale.cli import main
from resscale.data.batching import plan_batches
from resscale.data.cache_lease import leased_keys
from resscale.data.caching import Caching, RankPlace
from resscale.data.dataset import BatchRequest
from resscale.data.digits import digits_splits
from resscale.data.loader import WorkerOptions
from resscale.data.manifest import Manifest
from resscale.data.order import EpochOrder
from resscale.data.pack import pack_splits
from resscale.data.pack_plan import PackOptions
from resscale.data.remote_counts import count
from resscale.data.samples import ShardSamples
from resscale.errors import UserInputError

quiet = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
CONFIG = """
model: {model: resnet8_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {channels: 1, image_size: 8, train_crop: pad, pad: 1, global_batch_size: 32,
       eval_batch_size: 60, window: 60, log_sample_ids: true, decoder: pillow}
trainer: {accelerator: cpu, max_epochs: 2}
"""


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train and test of 180 digits each, in shards of 20."""
    folder = tmp_path_factory.mktemp("digits")
    options = PackOptions(samples_per_shard=20, limit=180, quality=100)
    pack_splits(digits_splits(), folder, options, "resscale pack digits")
    return folder


@pytest.fixture
def server(digits: Path) -> Iterator[FaultServer]:
    with serve(digits) as running:
        yield running


def fit(root: str, run: Path, *more: str) -> tuple[list[str], list[str]]:
    """Train; return what was read, and the losses."""
    config = run.with_suffix(".yaml")
    config.write_text(CONFIG)
    split = [f"--data.train={root}/train", f"--data.val={root}/test"]
    code = main(["fit", f"--config={config}", f"--run_dir={run}", *split, *more])
    assert code == 0
    ids = (run / "samples" / "rank-0.jsonl").read_text().splitlines()
    with (run / "metrics.csv").open() as table:
        losses = [f"{row['train/loss']} {row['val/loss']}" for row in csv.DictReader(table)]
    return ids, losses


@quiet
def test_training_over_a_failing_server_is_training_over_a_local_disk(
    digits: Path, server: FaultServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    local = fit(str(digits), tmp_path / "local", "--data.num_workers=0")
    bytes_of_shards = sum(path.stat().st_size for path in (digits / "train").glob("*.tar"))
    server.rates = {"drop": 0.05, "busy": 0.01, "truncate": 0.01, "whole": 0.01}
    cache = tmp_path / "cache"
    remote = fit(
        server.url,
        tmp_path / "remote",
        "--data.num_workers=2",
        f"--data.cache={cache}",
        f"--data.cache_gb={0.7 * bytes_of_shards / 1e9}",  # less than the data
    )
    assert remote == local
    # 2 epochs of 5 steps of 32 of 180 samples; none twice within an epoch
    for epoch in (0, 1):
        lines = [json.loads(line) for line in remote[0] if json.loads(line)["epoch"] == epoch]
        seen = [number for line in lines for number in line["ids"]]
        assert len(seen) == len(set(seen)) == 160
    assert server.faults()
    held = sum(path.stat().st_size for path in cache.iterdir())
    assert held <= 0.7 * bytes_of_shards
    said = capfd.readouterr()
    assert f"cache {cache}, " in said.out
    assert "epoch 2: read " in said.err
    events = (tmp_path / "remote" / "events.jsonl").read_text().splitlines()
    read = [event for event in map(json.loads, events) if event["event"] == "read"]
    assert [event["epoch"] for event in read] == [0, 1]
    assert sum(event["requests"] for event in read) > 0
    assert all(event["hits"] + event["direct"] >= 160 for event in read)


@quiet
def test_a_second_run_finds_the_shards_of_the_first(
    digits: Path, server: FaultServer, tmp_path: Path
) -> None:
    more = ["--data.num_workers=0", f"--data.cache={tmp_path / 'cache'}", "--data.cache_gb=0.1"]
    more += ["--trainer.max_epochs=1"]
    first = fit(server.url, tmp_path / "first", *more)
    downloads = server.whole_downloads()
    # 9 shards of either split, each once: all fit, so they stay.
    assert downloads == sorted(
        f"/{split}/{split}-00000{n}.tar" for split in ("train", "test") for n in range(9)
    )
    assert fit(server.url, tmp_path / "second", *more) == first
    assert server.whole_downloads() == downloads


@pytest.mark.parametrize(
    ("caching", "said"),
    [
        ({"limit_gb": 5.0}, "data.cache_gb says how to use a cache; name its folder: --data.cache"),
        ({"local_too": True}, "data.cache_local says how to use a cache"),
        ({"folder": ""}, "data.cache='' names no folder .*: name one, --data.cache /local/cache"),
        ({"folder": "/c", "limit_gb": 0.0}, "data.cache_gb=0.0 must be above 0 gigabytes"),
        ({"storage_options": {"s33": {}}}, "has 's33': it must map http, https, s3, gs .*'s3'"),
        ({"storage_options": {"s3": True}}, "has 's3': it must map"),
    ],
)
def test_options_that_contradict_themselves_are_refused(
    caching: dict[str, object], said: str
) -> None:
    with pytest.raises(UserInputError, match=said):
        Caching(**caching)  # type: ignore[arg-type]


def test_the_cache_takes_half_of_the_free_disk_unless_told(tmp_path: Path) -> None:
    caching = Caching(folder=str(tmp_path / "cache"))
    assert caching.cache is not None
    free = shutil.disk_usage(tmp_path).free
    assert 0.4 * free < caching.cache.limit_bytes < 0.6 * free  # others write here, too
    assert Caching().cache is None


def samples_of(server: FaultServer, caching: Caching, split: str) -> ShardSamples:
    return ShardSamples(Manifest.load(f"{server.url}/{split}"), caching.store(0))


def cached(caching: Caching) -> set[str]:
    assert caching.cache is not None
    return {path.name for path in caching.cache.folder.glob("*.tar")}


def test_a_full_shuffle_keeps_the_same_shards_all_the_time(
    server: FaultServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    caching = Caching(str(tmp_path / "cache"), limit_gb=300_000 / 1e9)
    samples = samples_of(server, caching, "train")
    sizes = samples.manifest.table.bytes
    order = EpochOrder([20] * 9, global_batch_size=32, shuffle="full")
    tell = caching.follow_training(
        samples, order, plan_batches(32, None, 1), RankPlace(), 5, WorkerOptions()
    )
    assert tell is not None
    assert "a part of the shards is kept" in capsys.readouterr().out
    # The first ones, as many as have 0.9 × 300,000 bytes.
    fitting = int((sizes.cumsum() <= 270_000).sum())
    assert 1 <= fitting < 9
    expected = {samples.source(n).file_name for n in range(fitting)}
    for epoch, step in ((0, 0), (0, 4), (1, 0), (7, 3)):
        tell(epoch, step)
        while cached(caching) != expected:
            time.sleep(0.01)
    caching.close()
    assert len(server.whole_downloads()) == fitting


def test_evaluation_shards_stay_where_they_take_a_quarter_at_most(
    server: FaultServer, tmp_path: Path
) -> None:
    requests = [BatchRequest(np.arange(n, n + 60)) for n in (0, 60, 120)]
    for limit_gb, stay in ((0.1, True), (0.0009, False)):
        caching = Caching(str(tmp_path / f"{limit_gb}"), limit_gb=limit_gb)
        samples = samples_of(server, caching, "test")
        kept = caching.kept_bytes(samples, RankPlace())
        assert kept == (samples.manifest.num_bytes if stay else 0)
        followed = caching.follow_evaluation(samples, requests, RankPlace())
        assert [request.ids[0] for request in followed] == [0, 60, 120]
        assert caching.cache is not None
        if stay:
            while len(cached(caching)) < 9:
                time.sleep(0.01)
            assert leased_keys(caching.cache.folder) == {samples.source(n).key for n in range(9)}
        else:
            while leased_keys(caching.cache.folder):  # behind its end it needs nothing
                time.sleep(0.01)
        caching.close()


def test_loaders_that_are_built_anew_leave_no_threads_leases_or_memory(
    server: FaultServer, tmp_path: Path
) -> None:
    caching = Caching(str(tmp_path / "cache"), limit_gb=0.1)
    order, plan = EpochOrder([20] * 9, global_batch_size=32), plan_batches(32, None, 1)
    before = caching.counts()
    stores = []
    for built in range(1, 6):
        samples = samples_of(server, caching, "test")
        tell = caching.follow_training(
            samples, order, plan, RankPlace(), 5, WorkerOptions(num_workers=1)
        )
        assert tell is not None
        tell(0, 0)
        list(caching.follow_evaluation(samples, [BatchRequest(np.arange(60))], RankPlace()))
        assert samples.store.worker_counts is not None
        assert caching.cache is not None
        count(hits=7)
        samples.store.worker_counts.note(0)  # as its reading process does: this one's, in sum
        read = (caching.counts() - before).hits
        # 7 in each round: once as this process's own, and once more as each worker's so far.
        assert read == 7 * built + 7 * built * (built + 1) // 2 + before.hits * built
        stores.append(weakref.ref(samples.store))
        while len(leases := list(caching.cache.folder.glob("*.live"))) != 2:
            time.sleep(0.01)
        # 8 downloads at once for training and as many for evaluation; old ones end in 0.2 s.
        while sum(each.name.startswith("prefetch") for each in threading.enumerate()) > 2 * 8:
            time.sleep(0.01)
    del samples, tell
    caching.close()
    # No cycle keeps them, so no collection is waited for; threads let go of them as they end.
    while any(store() is not None for store in stores[:-1]):
        time.sleep(0.01)
    caching.counts()
    assert len(caching._stores) <= 1
    assert list(leases[0].parent.glob("*.live")) == []


def test_local_shards_are_left_alone_unless_asked_for(digits: Path, tmp_path: Path) -> None:
    order = EpochOrder([20] * 9, global_batch_size=32)
    for local_too in (False, True):
        caching = Caching(str(tmp_path / "cache"), limit_gb=0.1, local_too=local_too)
        samples = ShardSamples(Manifest.load(digits / "train"), caching.store(0))
        tell = caching.follow_training(
            samples, order, plan_batches(32, None, 1), RankPlace(), 5, WorkerOptions()
        )
        assert (tell is not None) == caching.is_used == local_too
    assert tell is not None
    tell(0, 0)
    while len(cached(caching)) < 9:
        time.sleep(0.01)
    caching.close()


def test_without_a_cache_nothing_is_followed(server: FaultServer) -> None:
    caching = Caching()
    samples = samples_of(server, caching, "train")
    order = EpochOrder([20] * 9, global_batch_size=32)
    plan = plan_batches(32, None, 1)
    assert caching.follow_training(samples, order, plan, RankPlace(), 5, WorkerOptions()) is None
    assert caching.is_used  # what is read is said all the same
    requests = [BatchRequest(np.arange(5))]
    assert caching.follow_evaluation(samples, requests, RankPlace()) is requests


def test_a_cache_folder_that_cannot_be_looked_at_is_told_and_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Caching(folder=str(tmp_path / ("a" * 300))).cache  # names end at 255 bytes
    assert cache is not None
    assert not cache.is_on
    assert "cannot be written (File name too long)" in capsys.readouterr().err
