"""A contact sheet: thumbnails of a few samples of each class on one picture."""

from __future__ import annotations

import importlib.util
import io
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from resscale.data.locations import is_url, name_of, parent, without_secrets
from resscale.data.manifest import Manifest
from resscale.data.shard_index import ShardIndex
from resscale.data.store import ShardStore
from resscale.errors import UserInputError

COLUMNS = 10
THUMBNAIL_PX = 112
_MOST_ROWS = 12  # with so few classes each has a row of its own
_ROWS = 6  # otherwise
_GAP_PX, _MARGIN_PX, _CAPTION_PX, _HEADER_PX = 10, 24, 22, 56
_PAPER, _TILE, _INK, _GRAY = "#ffffff", "#eef0f3", "#1d2430", "#68707d"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def write_contact_sheet(manifest: Manifest, out: Path, seed: int = 0) -> tuple[int, int]:
    """Write the sheet as a PNG and return its width and height in pixels.

    Args:
        manifest: the shards.
        out: the file to write.
        seed: of the choice of samples.

    Raises:
        UserInputError: the file cannot be written.
    """
    indices = [ShardIndex.load(manifest.index_location(n)) for n in range(len(manifest.shards))]
    labels = np.concatenate([index.labels for index in indices])
    chosen = choose_samples(labels, seed)
    width, height = sheet_size(len(chosen))
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _header(draw, manifest, len(chosen))
    starts, store = np.concatenate([[0], np.cumsum(manifest.shard_sizes)]), ShardStore()
    for place, sample in enumerate(chosen.tolist()):
        shard = int(np.searchsorted(starts, sample, side="right")) - 1
        row = sample - int(starts[shard])
        index = indices[shard]
        location = manifest.shard_location(shard)
        raw = store.read(location, int(index.offsets[row]), int(index.sizes[row]))
        label = int(index.labels[row])
        caption = _name(manifest, label) if label >= 0 else index.keys[row].decode()
        _tile(sheet, draw, place, raw, caption)
    try:
        sheet.save(out, "PNG", optimize=True)
    except OSError as error:
        raise UserInputError(
            f"Cannot write the contact sheet {out} ({error.strerror}). Choose another: --out FILE"
        ) from error
    return width, height


def choose_samples(labels: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.int64]:
    """Return the samples to show, by class: up to a row each of few classes, one each of many.

    Args:
        labels: class of each sample, -1 for none, int64 (n,).
        seed: of the choice.
    """
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(labels))
    num_classes = len(np.unique(labels))
    most = COLUMNS * (num_classes if 1 < num_classes <= _MOST_ROWS else _ROWS)
    # A sample's rank among those of its class, in shuffled order: taking the lowest ranks first
    # shows all classes evenly.
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    grouped = labels[by_class]
    first = np.searchsorted(grouped, grouped)
    rank = np.arange(len(labels)) - first
    shares = rng.permutation(num_classes)[np.searchsorted(np.unique(labels), grouped)]
    best = np.lexsort((shares, rank))[:most]
    return by_class[np.sort(best)]


def sheet_size(num_images: int) -> tuple[int, int]:
    """Return width and height in pixels of a sheet of so many images."""
    rows = -(-num_images // COLUMNS)
    width = 2 * _MARGIN_PX + COLUMNS * (THUMBNAIL_PX + _GAP_PX) - _GAP_PX
    return width, _HEADER_PX + rows * (THUMBNAIL_PX + _CAPTION_PX + _GAP_PX) + _MARGIN_PX


def _header(draw: ImageDraw.ImageDraw, manifest: Manifest, shown: int) -> None:
    root = manifest.shards_root or manifest.root
    folder = without_secrets(root) if is_url(root) else str(Path(root).resolve())
    title = f"{name_of(parent(folder))}/{name_of(folder)}".lstrip("/")
    draw.text((_MARGIN_PX, 18), title, _INK, _font(20))
    facts = f"{manifest.num_samples:,} samples, {manifest.num_classes:,} classes, {shown} shown"
    right = sheet_size(shown)[0] - _MARGIN_PX
    draw.text((right - draw.textlength(facts, _font(14)), 23), facts, _GRAY, _font(14))


def _tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, place: int, raw: bytes, caption: str
) -> None:
    row, column = divmod(place, COLUMNS)
    x = _MARGIN_PX + column * (THUMBNAIL_PX + _GAP_PX)
    y = _HEADER_PX + row * (THUMBNAIL_PX + _CAPTION_PX + _GAP_PX)
    draw.rectangle((x, y, x + THUMBNAIL_PX - 1, y + THUMBNAIL_PX - 1), _TILE)
    if (picture := _thumbnail(raw)) is None:
        draw.text((x + 8, y + THUMBNAIL_PX // 2 - 8), "cannot be read", _GRAY, _font(12))
    else:
        left = x + (THUMBNAIL_PX - picture.width) // 2
        sheet.paste(picture, (left, y + (THUMBNAIL_PX - picture.height) // 2))
    draw.text((x, y + THUMBNAIL_PX + 3), _fitting(draw, caption), _INK, _font(12))


def _thumbnail(raw: bytes) -> Image.Image | None:
    try:
        with Image.open(io.BytesIO(raw)) as image:
            picture = image.convert("RGBA" if image.has_transparency_data else "RGB")
    except Exception:  # Pillow raises whatever the damage leads it into
        return None
    if picture.mode == "RGBA":
        tile = Image.new("RGBA", picture.size, _TILE)
        picture = Image.alpha_composite(tile, picture).convert("RGB")
    scale = THUMBNAIL_PX / max(picture.size)
    # Tiny images keep sharp pixels, so that they can be seen for what they are.
    method = Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, method)


def _fitting(draw: ImageDraw.ImageDraw, text: str) -> str:
    if draw.textlength(text, _font(12)) <= THUMBNAIL_PX:
        return text
    while text and draw.textlength(text + "…", _font(12)) > THUMBNAIL_PX:
        text = text[:-1]
    return text + "…"


def _name(manifest: Manifest, label: int) -> str:
    return manifest.classes[label] if label < len(manifest.classes) else str(label)


@cache
def _font(size_px: int) -> Font:
    # matplotlib, which resscale needs anyway, brings a font with Greek and Cyrillic letters; its
    # folder is found without importing it.
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin:
        file = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size_px)
    return ImageFont.load_default(size_px)
