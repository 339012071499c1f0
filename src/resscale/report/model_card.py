"""The model card: one Markdown page beside exported weights, for whoever is handed them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from resscale import __version__
from resscale.models import ResNet, count_macs
from resscale.models.variants import find_variant
from resscale.report.card_facts import UNKNOWN, Accuracy, Rows
from resscale.report.export import refuse_existing, sha256
from resscale.report.export_net import Architecture

TORCHVISION = frozenset(
    {
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d",
        "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2",
    }
)  # fmt: skip
"""The names that torchvision has too, with the same keys."""

_ONLY_IN_TRAINING = ("zero_init_residual", "drop_path", "dropout", "block_dropout")
_NAMES_SHOWN = 100
_FILE_ROW = re.compile(
    r"^\| `(?P<name>[^`]+)` \| (?P<what>.*) \| [\d,]+ \| `(?P<sha256>[0-9a-f]{64})` \|$", re.M
)
_COMMAND = re.compile(r"^resscale export .*$", re.M)


@dataclass(frozen=True)
class ExportedFile:
    """One file of these weights.

    Args:
        name: without its folder.
        what: its form, in words.
        num_bytes: its size.
        sha256: of its bytes.
        command: that wrote it.
    """

    name: str
    what: str
    num_bytes: int
    sha256: str
    command: str


@dataclass(frozen=True)
class Card:
    """All that the card says.

    Args:
        architecture: of the net.
        net: with its weights.
        weights: "raw" or "EMA".
        digest: of the weights, whatever the form of the file.
        files: of these weights, the newest and those that the card listed before.
        date: of the export.
        source: where the weights are from.
        accuracy: by kind of weights.
        training: rows of that section.
        data: rows of that section.
        classes: names by class; empty: not known.
        config: of the run.
    """

    architecture: Architecture
    net: ResNet
    weights: str
    digest: str
    files: Sequence[ExportedFile]
    date: str
    source: str
    accuracy: Mapping[str, Accuracy]
    training: Rows
    data: Rows
    classes: Sequence[str]
    config: Mapping[str, Any]


def render_card(card: Card) -> str:
    """Return the card as Markdown."""
    a = card.architecture
    parts = [
        f"# {a.name}, {a.num_classes} classes",
        f"Written by resscale {__version__}, the newest file on {card.date}:",
        "\n".join(["```bash", *(file.command for file in card.files), "```"]),
        f"Weights: {card.weights}, from `{card.source}`. In the form of `.safetensors` they have "
        f"the SHA-256 `{card.digest}`.",
        "## Files",
        "\n".join(["| file | form | bytes | SHA-256 |", "| --- | --- | --- | --- |"])
        + "".join(f"\n{row}" for row in map(_file_row, card.files)),
        "## Network",
        _table(_network_rows(card)),
        "## Input",
        _table([*_input_rows(a), *_inside_rows(card.files)]),
        *_classes(card.classes),
        "## Loading",
        _loading(card),
        "## Accuracy",
        _accuracy(card),
        "## Training",
        _recorded(card.training),
        "## Data",
        _recorded(card.data),
        *_configuration(card.config),
    ]
    return "\n\n".join(parts) + "\n"


def card_path(out: Path) -> Path:
    """Return the card's path: beside the file, with the ending .md."""
    return out.with_suffix(".md")


def listed_files(out: Path, digest: str, *, overwrite: bool) -> list[ExportedFile]:
    """Return the other files that the card that is there lists, and that are there unchanged.

    A card of the same weights is replaced: `net.safetensors` and `net.onnx` share `net.md`.

    Args:
        out: the file to be written.
        digest: of the weights.
        overwrite: replace a card of other weights too.

    Raises:
        UserInputError: a card of other weights, or another file of this name, is there.
    """
    card = card_path(out)
    text = card.read_text(errors="replace") if card.is_file() else ""
    if digest not in text:
        refuse_existing(card, overwrite=overwrite)
        return []
    found = []
    for match in _FILE_ROW.finditer(text):
        file = out.with_name(Path(match["name"]).name)
        if file == out or not file.is_file():
            continue
        content = file.read_bytes()
        if sha256(content) == match["sha256"]:
            what = match["what"].replace("\\|", "|")
            command = next((c for c in _COMMAND.findall(text) if file.name in c), "")
            found.append(ExportedFile(file.name, what, len(content), match["sha256"], command))
    return found


def is_torchvisions(architecture: Architecture) -> bool:
    """Tell whether torchvision's net of this name computes the same from the same weights."""
    a = architecture
    if a.name not in TORCHVISION or a.in_channels != 3:
        return False
    own = find_variant(a.name).options
    training = {f.name: f.default for f in fields(own) if f.name in _ONLY_IN_TRAINING}
    return replace(own, **{**a.options, **training}) == replace(own, **training)  # type: ignore[arg-type]


def _file_row(file: ExportedFile) -> str:
    return f"| `{file.name}` | {_cell(file.what)} | {file.num_bytes:,} | `{file.sha256}` |"


def _network_rows(card: Card) -> Rows:
    a = card.architecture
    macs = count_macs(card.net, a.image_size, a.in_channels) / 1e9
    options = ", ".join(f"{name}={value!r}" for name, value in a.options.items())
    return [
        ("network", f"{a.name} ({find_variant(a.name).source})"),
        ("options", options or "those of the name"),
        ("parameters", f"{sum(p.numel() for p in card.net.parameters()):,}"),
        ("GMACs", f"{macs:.3g} for one image of {a.image_size}x{a.image_size} pixels"),
        ("classes", str(a.num_classes)),
        ("output", f"logits, float32 (batch, {a.num_classes}); softmax gives probabilities"),
    ]


def _input_rows(architecture: Architecture) -> Rows:
    a = architecture
    kind = {1: "grey (luminance)", 3: "RGB"}.get(a.in_channels, "as in training")
    rows = [("images", f"float32 (batch, {a.in_channels}, height, width), {kind}")]
    if a.preparation is None:
        unknown = "not recorded: use what the net was trained with"
        return [*rows, ("evaluation crop", unknown), ("mean and std", unknown)]
    crop = a.preparation.crop
    return [
        *rows,
        (
            "evaluation crop",
            f"the shorter side resized to {crop.resize} pixels (bilinear, antialiased), then the "
            f"central {crop.size}x{crop.size} pixels",
        ),
        ("normalisation", "pixels in 0 to 1 (divided by 255), minus mean, divided by std"),
        ("mean", _numbers(a.preparation.mean)),
        ("std", _numbers(a.preparation.std)),
    ]


def _inside_rows(files: Sequence[ExportedFile]) -> Rows:
    """Return a row for each file that normalises by itself."""
    inside = "the normalisation is inside: it takes the pixels as they are, uint8"
    return [(f"of `{file.name}`", inside) for file in files if "uint8" in file.what]


def _classes(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(f"{i} `{_cell(name)}`" for i, name in enumerate(names[:_NAMES_SHOWN]))
    rest = len(names) - _NAMES_SHOWN
    more = f", and {rest} more in the order of the data's manifest" if rest > 0 else ""
    return ["Classes by their number: " + shown + more + "."]


def _loading(card: Card) -> str:
    a = card.architecture
    names = [file.name for file in card.files]
    arguments = [f'"{a.name}"', f"num_classes={a.num_classes}", f"in_channels={a.in_channels}"]
    arguments += [f"{name}={value!r}" for name, value in a.options.items()]
    blocks = []
    for file in (name for name in names if not name.endswith(".onnx")):
        blocks.append(
            "from resscale.models import create_model, load_weights\n\n"
            f"net = create_model({', '.join(arguments)}).eval()\n"
            f'load_weights(net, "{file}")'
        )
        if is_torchvisions(a):
            reader = (
                f'safetensors.torch.load_file("{file}")'
                if file.endswith(".safetensors")
                else f'torch.load("{file}", weights_only=True)'
            )
            package = "safetensors.torch" if file.endswith(".safetensors") else "torch"
            blocks.append(
                f"import {package}\nimport torchvision\n\n"
                f"net = torchvision.models.{a.name}(num_classes={a.num_classes}).eval()\n"
                f"net.load_state_dict({reader}, strict=True)"
            )
    for file in (name for name in names if name.endswith(".onnx")):
        blocks.append(
            "import onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{file}")\n'
            '(logits,) = session.run(["logits"], {"images": images})'
        )
    return "\n\n".join(f"```python\n{block}\n```" for block in blocks)


def _accuracy(card: Card) -> str:
    rows = ["| weights | top-1 | top-5 |", "| --- | --- | --- |"]
    for kind, value in card.accuracy.items():
        here = f"{kind} (these)" if kind == card.weights else kind
        rows.append(f"| {here} | {_percent(value.top1)} | {_percent(value.top5)} |")
    note = (
        "On the validation data, when the checkpoint was saved. The validation data may have "
        "served to choose it."
    )
    if all(value.top1 is None for value in card.accuracy.values()):
        note = "No evaluation of this step of training is recorded beside the weights."
    return "\n".join(rows) + f"\n\n{note}"


def _configuration(config: Mapping[str, Any]) -> list[str]:
    if not config:
        return []
    text = yaml.safe_dump(dict(config), sort_keys=False)
    return ["## Configuration", f"~~~~yaml\n{text.rstrip()}\n~~~~"]


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *lines])


def _recorded(rows: Rows) -> str:
    """Return a table, or one sentence where nothing in it is known."""
    if all(value == UNKNOWN for _, value in rows):
        return "Not recorded: the weights came without a configuration."
    return _table(rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _percent(fraction: float | None) -> str:
    return "not measured" if fraction is None else f"{fraction:.2%}"
