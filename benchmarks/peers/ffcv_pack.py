"""ffcv's writer: `python ffcv_pack.py SOURCE OUT.beton --max_resolution 500`.

As ffcv's ImageNet example: JPEGs of quality 90, all encoded anew. A share of the images may be kept
as raw pixels, which makes reading cheaper and the file several times as large.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from PIL import Image
from timed import list_images, timed


class Photos:
    """The images of a folder of class folders, in PIL, as ffcv's writer asks for them."""

    def __init__(self, images: list[tuple[str, int]]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        path, label = self.images[number]
        return Image.open(path).convert("RGB"), label


def main() -> None:
    """Read the command line, write, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--max_resolution", type=int)
    parser.add_argument("--raw_share", type=float, default=0.0, help="kept as pixels (%(default)s)")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    photos = Photos(list_images(options.source))
    field = RGBImageField(
        write_mode="proportion" if options.raw_share else "jpg",
        compress_probability=1 - options.raw_share,
        max_resolution=options.max_resolution,
        jpeg_quality=90,
    )
    writer = DatasetWriter(
        str(options.out), {"image": field, "label": IntField()}, num_workers=options.workers
    )
    timed(lambda: writer.from_indexed_dataset(photos), len(photos), ["ffcv"])


if __name__ == "__main__":
    main()
