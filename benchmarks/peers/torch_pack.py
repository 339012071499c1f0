"""Writers of litData, MosaicML Streaming and webdataset: `python torch_pack.py mds SOURCE OUT`.

SOURCE is a folder of class folders. Each stores the files' own bytes, as its documentation has it,
and none looks whether they can be decoded.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from timed import list_images, timed

Images = list[tuple[str, int]]


def litdata(images: Images, out: Path, workers: int) -> None:
    """`litdata.optimize` with PIL images opened from files: their bytes are stored as they are."""
    import litdata as library

    library.optimize(
        fn=_litdata_sample,
        inputs=images,
        output_dir=str(out),
        num_workers=workers,
        chunk_bytes="64MB",
    )


def _litdata_sample(item: tuple[str, int]) -> dict[str, Any]:
    from PIL import Image

    return {"image": Image.open(item[0]), "label": item[1]}


def mds(images: Images, out: Path, workers: int, column: str) -> None:
    """`MDSWriter`; its bytes column takes a file as it is, its jpeg column a PIL image."""
    from PIL import Image
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"image": column, "label": "int"}) as writer:
        for path, label in images:
            image = Path(path).read_bytes() if column == "bytes" else Image.open(path)
            writer.write({"image": image, "label": label})


def webdataset(images: Images, out: Path, workers: int) -> None:
    """`ShardWriter`, 1,000 samples a shard."""
    import webdataset as library

    out.mkdir(parents=True)
    with library.ShardWriter(f"{out}/part-%06d.tar", maxcount=1000, verbose=0) as writer:
        for number, (path, label) in enumerate(images):
            sample = {"__key__": f"{number:08d}", "jpg": Path(path).read_bytes(), "cls": label}
            writer.write(sample)


# The function, the module it needs, and the distribution.
WRITERS: dict[str, tuple[Callable[[Images, Path, int], None], str, str]] = {
    "litdata": (litdata, "litdata", "litdata"),
    "mds": (partial(mds, column="bytes"), "streaming", "mosaicml-streaming"),
    "mds-jpeg": (partial(mds, column="jpeg"), "streaming", "mosaicml-streaming"),
    "webdataset": (webdataset, "webdataset", "webdataset"),
}


def main() -> None:
    """Read the command line, write, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=WRITERS)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    write, module, distribution = WRITERS[options.name]
    importlib.import_module(module)
    images = list_images(options.source)
    timed(lambda: write(images, options.out, options.workers), len(images), [distribution])


if __name__ == "__main__":
    main()
