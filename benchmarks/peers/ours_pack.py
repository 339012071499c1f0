"""resscale's packing: `python ours_pack.py SOURCE OUT --check full`."""

from __future__ import annotations

import argparse
from pathlib import Path

from timed import timed

from resscale.data.pack import pack_splits
from resscale.data.pack_plan import PackOptions
from resscale.data.sources import imagefolder_splits


def main() -> None:
    """Read the command line, write, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--check", default="full")
    parser.add_argument("--resize", type=int)
    options = parser.parse_args()
    packing = PackOptions(check=options.check, resize=options.resize, processes=options.workers)
    splits = imagefolder_splits(options.source)
    images = sum(len(split.samples) for split in splits)
    timed(
        lambda: pack_splits(splits, options.out, packing, "resscale pack imagefolder"),
        images,
        ("resscale", "pillow"),
    )


if __name__ == "__main__":
    main()
