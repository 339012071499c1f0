"""The file of a run's mistakes: written, read back, refused where it is damaged."""

import base64
import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resscale.errors import DataFormatError
from resscale.report.mistakes_file import (
    MISTAKES_FILE,
    Measured,
    identify,
    read_measured,
    thumbnail,
    write_measured,
)
from resscale.training.checkpoint_seal import SealedWriter


def test_what_is_written_is_read_back(tmp_path: Path, measured: Measured) -> None:
    assert write_measured(measured, tmp_path) == tmp_path / "mistakes.json"
    assert read_measured(tmp_path) == measured
    assert [path.name for path in tmp_path.iterdir()] == ["mistakes.json"]


def test_where_nothing_was_measured_there_is_nothing(tmp_path: Path) -> None:
    assert read_measured(tmp_path) is None


def test_counts_and_names(measured: Measured) -> None:
    # 4 + 5 + 6 images, 4 + 2 + 4 right ones.
    assert (measured.num_scored, measured.num_mistakes) == (15, 5)
    assert [measured.name(label) for label in (0, 2, 3)] == ["cat", "fox", "3"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda facts: facts.update(format=99),
        lambda facts: facts.pop("hits"),
        lambda facts: facts.update(unknown=1),
        lambda facts: facts.update(hits=[1, 2]),
        lambda facts: facts.update(hits=[4, 5, 6]),  # no mistakes, and yet pairs
        lambda facts: facts.update(pairs=[[0, 9, 1]]),  # a class that is none
        lambda facts: facts.update(confident=[{"key": "a"}]),
        lambda facts: facts["confident"][0].update(thumbnail="https://x.example/a.png"),
    ],
)
def test_a_damaged_file_is_refused(
    tmp_path: Path, measured: Measured, damage: Callable[[dict[str, Any]], object]
) -> None:
    path = write_measured(measured, tmp_path)
    facts = json.loads(path.read_text())
    damage(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(DataFormatError, match=r"mistakes\.json is not as .* measure anew with"):
        read_measured(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "7"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MISTAKES_FILE).write_text(text)
    with pytest.raises(DataFormatError, match="remove it"):
        read_measured(tmp_path)


def test_a_checkpoint_is_known_by_its_seal(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    names = []
    for value in (0.0, 1.0, 0.0):
        with path.open("wb") as file:
            writer = SealedWriter(file)
            torch.save({"x": torch.tensor(value)}, writer)
            writer.seal()
        names.append(identify(path))
    assert names[0] == names[2] != names[1]
    assert names[0].startswith("sha256 ")
    assert len(names[0]) == len("sha256 ") + 64


def test_an_unsealed_checkpoint_is_known_by_its_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"12345")
    before = identify(path)
    assert before.startswith("5 bytes of ")
    path.write_bytes(b"123456")
    assert identify(path) != before


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_small_pictures_keep_each_pixel(channels: int, mode: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 8, channels)).astype(np.uint8)
    url, is_tiny = thumbnail(image)
    head, _, data = url.partition(",")
    assert (head, is_tiny) == ("data:image/png;base64", True)
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert shown.mode == mode
        assert (np.asarray(shown).reshape(image.shape) == image).all()


def test_large_pictures_become_small_jpegs() -> None:
    url, is_tiny = thumbnail(np.full((224, 224, 3), 90, dtype=np.uint8))
    head, _, data = url.partition(",")
    assert (head, is_tiny) == ("data:image/jpeg;base64", False)
    with Image.open(io.BytesIO(base64.b64decode(data))) as shown:
        assert (shown.format, shown.size) == ("JPEG", (128, 128))


def test_a_thousand_classes_make_a_small_file(tmp_path: Path, measured: Measured) -> None:
    many: Measured = dataclasses.replace(
        measured,
        samples=(50,) * 1000,
        hits=(40,) * 1000,
        hits_top5=(45,) * 1000,
        # Each class is taken for each of the next ten once.
        pairs=tuple((c, (c + k) % 1000, 1) for c in range(1000) for k in range(1, 11)),
        classes=tuple(f"class {c}" for c in range(1000)),
    )
    assert write_measured(many, tmp_path).stat().st_size < 400_000
    assert read_measured(tmp_path) == many
