"""What was measured of a checkpoint's mistakes, as a file in the run directory.

A page is drawn from it without the net, the images or torch.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from resscale.errors import DataFormatError
from resscale.training.checkpoint_seal import read_seal

MISTAKES_FILE = "mistakes.json"
_FORMAT = 1
THUMBNAIL_PX = 128
_SHARP_PX = 64  # smaller pictures are kept as they are: JPEG would smear each of their pixels
_JPEG_QUALITY = 85


@dataclass(frozen=True)
class Shown:
    """One confident mistake, to be shown.

    Args:
        key: of the sample.
        label: its class.
        predicted: what the net took it for.
        probability: that the net gave to that.
        label_probability: that it gave to the label; None: not among its likeliest classes.
        thumbnail: what the net saw, as a `data:` URL.
        is_tiny: the thumbnail is to be shown with sharp pixels.
    """

    key: str
    label: int
    predicted: int
    probability: float
    label_probability: float | None
    thumbnail: str
    is_tiny: bool


@dataclass(frozen=True)
class Measured:
    """The mistakes of one checkpoint on one set of images.

    Args:
        checkpoint: its file; relative to the run directory where it lies in it.
        identity: of the file's bytes, see `identify`.
        global_step: optimizer steps behind it.
        averaged: whether its averaged weights were measured, or the weights as trained.
        why: why these, one sentence; empty where it has no averaged ones.
        images: location of the validation shards.
        fingerprint: of their manifest.
        crop_px: side of the images that the net saw, pixels.
        precision: that the net computed in, such as "bf16-mixed".
        samples: images scored, per class.
        hits: of these, right ones.
        hits_top5: of these, with the label among the five likeliest classes.
        pairs: label, predicted class and images, of each pair of classes that were mixed up.
        classes: names, by class; empty where none are known.
        confident: the most confident mistakes, the most confident first.
        bad: key and reason of images that could not be decoded, the first of them.
        num_bad: how many there are.
        date: when it was measured.
    """

    checkpoint: str
    identity: str
    global_step: int
    averaged: bool
    why: str
    images: str
    fingerprint: str
    crop_px: int
    precision: str
    samples: tuple[int, ...]
    hits: tuple[int, ...]
    hits_top5: tuple[int, ...]
    pairs: tuple[tuple[int, int, int], ...]
    classes: tuple[str, ...]
    confident: tuple[Shown, ...]
    bad: tuple[tuple[str, str], ...]
    num_bad: int
    date: str

    @property
    def num_scored(self) -> int:
        """Images that count."""
        return sum(self.samples)

    @property
    def num_mistakes(self) -> int:
        """Images that were taken for another class."""
        return self.num_scored - sum(self.hits)

    def name(self, label: int) -> str:
        """Return a class's name, or its number where it has none."""
        return self.classes[label] if label < len(self.classes) else str(label)


def identify(checkpoint: Path) -> str:
    """Return what tells a checkpoint from any other: its SHA-256, read off its seal.

    An unsealed file, of an older version, is known by its size and time.

    Raises:
        OSError: the file cannot be read.
    """
    seal = read_seal(checkpoint)
    if seal is not None:
        return f"sha256 {seal}"
    stat = checkpoint.stat()
    return f"{stat.st_size} bytes of {stat.st_mtime_ns}"


def write_measured(measured: Measured, run: Path) -> Path:
    """Write the file into a run directory, in one step; return its path."""
    path = run / MISTAKES_FILE
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(json.dumps({"format": _FORMAT, **asdict(measured)}) + "\n")
    temporary.replace(path)
    return path


def read_measured(run: Path) -> Measured | None:
    """Return what a run directory holds; None where nothing was measured.

    Raises:
        DataFormatError: the file is damaged, or of a later version.
    """
    path = run / MISTAKES_FILE
    try:
        facts = json.loads(path.read_text())
        if facts.pop("format") != _FORMAT:
            raise ValueError("of another version")
        return _from_facts(facts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataFormatError(
            f"{path} is not as `resscale report --mistakes` wrote it "
            f"({type(error).__name__}: {error}); remove it, and measure anew with --mistakes."
        ) from error


def thumbnail(image: npt.NDArray[np.uint8]) -> tuple[str, bool]:
    """Return a picture as a `data:` URL, no larger than `THUMBNAIL_PX`, and whether it is tiny.

    Args:
        image: uint8 (H, W, C), C of 1 or 3.
    """
    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image))
    is_tiny = max(picture.size) <= _SHARP_PX
    buffer = io.BytesIO()
    if is_tiny:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    kind = "png" if is_tiny else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}", is_tiny


def _from_facts(facts: dict[str, Any]) -> Measured:
    facts["confident"] = tuple(Shown(**entry) for entry in facts["confident"])
    for entry in facts["confident"]:
        if not entry.thumbnail.startswith("data:image/"):
            raise ValueError("a thumbnail that is none")
    for name in ("samples", "hits", "hits_top5"):
        facts[name] = tuple(int(count) for count in facts[name])
    if not len(facts["samples"]) == len(facts["hits"]) == len(facts["hits_top5"]):
        raise ValueError("counts of different numbers of classes")
    num_classes = len(facts["samples"])
    facts["pairs"] = tuple(_pair(pair, num_classes) for pair in facts["pairs"])
    mistaken = [0] * num_classes
    for label, _, count in facts["pairs"]:
        mistaken[label] += count
    if mistaken != [n - hits for n, hits in zip(facts["samples"], facts["hits"], strict=True)]:
        raise ValueError("counts that contradict each other")
    facts["classes"] = tuple(str(name) for name in facts["classes"])
    facts["bad"] = tuple((str(key), str(reason)) for key, reason in facts["bad"])
    return Measured(**facts)


def _pair(pair: Sequence[int], num_classes: int) -> tuple[int, int, int]:
    label, predicted, count = (int(value) for value in pair)
    if not (0 <= label < num_classes and 0 <= predicted < num_classes):
        raise ValueError("a class that is none")
    return label, predicted, count
