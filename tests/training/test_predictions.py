"""Predictions as CSV and JSONL: a row for each sample, damaged ones with their reason."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import Tensor, nn

from resscale import ImageClassifier
from resscale.data import ShardDataModule
from resscale.data.dataset import BadSample
from resscale.errors import UserInputError
from resscale.training.predictions import PredictionWriter

pytestmark = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"
)
CLASSES = ("dark", "red", "green", "blue", "grey", "bright")
TRAINER: Any = SimpleNamespace(world_size=1, is_global_zero=True)


class Brightest(nn.Module):
    """Logits of six classes: the mean of each channel for red, green and blue, else -4."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.full((len(images), 6), -4.0)
        logits[:, 1:4] = images.mean((2, 3))
        return logits


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images of one color each, the third of them cut off."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name, color in (("a", "red"), ("b", "blue"), ("c", "red"), ("d", "lime")):
        buffer = io.BytesIO()
        Image.new("RGB", (20, 10), color).save(buffer, "PNG")
        data = buffer.getvalue()
        (folder / f"{name}.png").write_bytes(data[:40] if name == "c" else data)
    return folder


def predict(images: Path, output: Path, classes: tuple[str, ...] = CLASSES) -> PredictionWriter:
    """Predict a folder in batches of 3 with a real trainer."""
    data = ShardDataModule(
        predict=str(images), image_size=8, train_crop="center", eval_batch_size=3, num_workers=0
    )
    writer = PredictionWriter(output, data.samples("predict"), classes)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[writer],
    )
    trainer.predict(ImageClassifier(Brightest(), num_classes=6), data, return_predictions=False)
    return writer


def test_jsonl_has_an_object_for_each_image_in_order(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.jsonl"
    assert predict(images, output).count == 4
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["key"] for row in rows] == [str(images / f"{name}.png") for name in "abcd"]
    for row, color in zip(rows, ("red", "blue", None, "green"), strict=True):
        if color is None:
            assert (row["classes"], row["probabilities"]) == ([], [])
            assert row["error"]
        else:
            assert row["error"] is None
            assert row["classes"][0] == color
            assert len(row["classes"]) == len(row["probabilities"]) == 5
            assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
            assert 0.9 < sum(row["probabilities"]) <= 1 + 1e-5


def test_csv_has_five_pairs_of_columns_and_empty_cells_for_a_damaged_image(
    images: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    predict(images, output)
    with output.open(newline="") as file:
        head, *rows = csv.reader(file)
    pairs = [f"{name}_{k}" for k in (1, 2, 3, 4, 5) for name in ("class", "probability")]
    assert head == ["key", *pairs, "error"]
    assert [row[1] for row in rows] == ["red", "blue", "", "green"]
    assert all(len(row) == 12 for row in rows)  # key, 5 · 2, error
    damaged = rows[2]
    assert damaged[1:11] == [""] * 10
    assert damaged[11]
    assert all(row[11] == "" for row in rows if row is not damaged)


def test_classes_without_names_are_numbers(images: Path, tmp_path: Path) -> None:
    predict(images, tmp_path / "out.jsonl", classes=("dark",))
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first["classes"][0] == "1"
    assert set(first["classes"]) <= {"dark", "1", "2", "3", "4", "5"}


def test_padding_is_left_out_and_ranks_may_come_in_any_order(tmp_path: Path) -> None:
    samples: Any = SimpleNamespace(key=lambda sample: f"key{sample}")
    writer = PredictionWriter(tmp_path / "out.csv", samples, ("x", "y"))
    outputs = (torch.tensor([[1, 0]] * 3), torch.tensor([[0.75, 0.25]] * 3))
    bad = [BadSample(id=4, key="key4", shard="s", reason="cut, off", replaced_by=-1)]
    for ids in ([7, 4, -1], [2, -1, -1]):
        batch: Any = {"id": torch.tensor(ids), "bad": bad if 4 in ids else []}
        writer.on_predict_batch_end(TRAINER, None, outputs, batch, 0)
    writer.on_predict_end(TRAINER, None)
    assert writer.count == 3
    assert writer.path.read_text().splitlines() == [
        "key,class_1,probability_1,class_2,probability_2,error",
        "key2,y,0.75,x,0.25,",
        'key4,,,,,"cut, off"',
        "key7,y,0.75,x,0.25,",
    ]


def test_the_rows_of_all_ranks_are_brought_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"classes": ["x"], "probabilities": [1.0], "error": None}

    def gather(parts: list[Any], own: dict[int, Any]) -> None:
        parts[:] = [own, {0: {"key": "zero", **row}}]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    samples: Any = SimpleNamespace()
    trainer: Any = SimpleNamespace(world_size=2, is_global_zero=True)
    writer = PredictionWriter(tmp_path / "out.jsonl", samples, ())
    writer._rows = {1: {"key": "one", **row}}
    writer.on_predict_end(trainer, None)
    keys = [json.loads(line)["key"] for line in writer.path.read_text().splitlines()]
    assert (keys, writer.count) == (["zero", "one"], 2)
    trainer.is_global_zero = False
    writer.path.unlink()
    writer.on_predict_end(trainer, None)
    assert not writer.path.exists()


@pytest.mark.parametrize("name", ["out.txt", "out", "out.json"])
def test_another_ending_is_refused(tmp_path: Path, name: str) -> None:
    samples: Any = SimpleNamespace()
    with pytest.raises(UserInputError, match=r"the ending says the format, one of \.csv, \.jsonl"):
        PredictionWriter(tmp_path / name, samples, ())
