"""One batch is always under way to the device; order, ends and errors stay where they were."""

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from resscale.cli import main
from resscale.data.dataset import Batch
from resscale.data.loader import TrainLoader
from resscale.errors import DataFormatError
from resscale.training.device_prefetch import send_ahead, transfer_of


class Notes:
    """A sender that notes what it is asked for."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def send(self, batch: Any) -> Any:
        self.said.append(f"send {batch}")
        return ("sent", batch)

    def take(self, sent: Any) -> Any:
        self.said.append(f"take {sent[1]}")
        return sent[1]


def test_the_next_batch_is_sent_before_this_one_is_given() -> None:
    notes = Notes()
    batches: Iterator[Any] = iter("abc")
    given = []
    for batch in send_ahead(batches, notes):
        notes.said.append(f"train {batch}")
        given.append(batch)
    assert given == ["a", "b", "c"]
    assert notes.said == [
        *("send a", "send b", "take a", "train a"),
        *("send c", "take b", "train b", "take c", "train c"),
    ]


def test_no_batches_are_none() -> None:
    assert list(send_ahead(iter([]), Notes())) == []


def test_an_error_comes_where_its_batch_would_have_come() -> None:
    def batches() -> Iterator[Any]:
        yield "a"
        yield "b"
        raise DataFormatError("shard 3 is damaged")

    ahead = send_ahead(batches(), Notes())
    assert [next(ahead), next(ahead)] == ["a", "b"]
    with pytest.raises(DataFormatError, match="shard 3 is damaged"):
        next(ahead)


def test_a_loader_that_nobody_has_begun_reads_nothing() -> None:
    asked = []

    def batches() -> Iterator[Any]:
        asked.append(True)
        yield "a"

    send_ahead(batches(), Notes())
    assert asked == []


class Data:
    """A data module that notes where a batch goes."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        return batch, device.type, index


def test_what_moves_batches_does_not_keep_the_data() -> None:
    data = Data()
    transfer, gone = transfer_of(data, torch.device("cpu")), weakref.ref(data)
    batch: Any = "a"
    assert transfer(batch) == ("a", "cpu", 0)
    del data
    assert gone() is None


CONFIG = """
model: {model: resnet8_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, channels: 1, image_size: 8, train_crop: pad, pad: 1, flip: true,
       global_batch_size: 64, micro_batch_size: 32, num_workers: 0, log_sample_ids: true}
trainer: {accelerator: cpu, max_epochs: 2, limit_train_batches: 6, log_every_n_steps: 1}
"""


class Wrapping(Callback):
    """Does on a CPU what `DevicePrefetch` does on a GPU."""

    def __init__(self) -> None:
        self.notes = Notes()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        assert isinstance(trainer.train_dataloader, TrainLoader)
        sender = Notes()
        sender.said = self.notes.said = []

        def through(batches: Iterator[Batch]) -> Iterator[Batch]:
            return send_ahead(batches, sender)

        trainer.train_dataloader.through = through


@pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
def test_a_run_that_sends_ahead_trains_on_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    wrapping: Callable[[], Wrapping] = Wrapping
    for name in ("plain", "ahead"):
        if name == "ahead":
            monkeypatch.setattr("resscale.cli_lightning.DevicePrefetch", wrapping)
        arguments = ["--config", f"{tmp_path}/tiny.yaml", "--run_dir", f"{tmp_path}/{name}"]
        assert main(["fit", *arguments]) == 0
    ids = [(tmp_path / name / "samples/rank-0.jsonl").read_text() for name in ("plain", "ahead")]
    assert ids[0] == ids[1]
    states = [
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "ahead")
    ]
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
