"""NVIDIA DALI on the CPU: `python dali_loader.py files FOLDER` or `... shards FOLDER`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types
from serve import serve


@pipeline_def
def training_pipeline(kind: str, data: str, size: int) -> Any:
    """Return DALI's ImageNet pipeline up to uint8 images: decode and crop, resize, flip."""
    if kind == "files":
        jpegs, labels = fn.readers.file(file_root=data, random_shuffle=True, name="reader")
    else:
        shards = sorted(str(path) for path in Path(data).glob("*.tar"))
        jpegs, labels = fn.readers.webdataset(
            paths=shards,
            index_paths=[shard + ".dali" for shard in shards],
            ext=["jpg;png", "cls"],
            random_shuffle=True,
            missing_component_behavior="error",
            name="reader",
        )
    images = fn.decoders.image_random_crop(
        jpegs,
        device="cpu",
        output_type=types.RGB,
        random_aspect_ratio=[3 / 4, 4 / 3],
        random_area=[0.08, 1.0],
        num_attempts=10,
    )
    images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.flip(images, horizontal=fn.random.coin_flip()), labels


def main() -> None:
    """Read the command line and serve epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("files", "shards"))
    parser.add_argument("data")
    parser.add_argument("--workers", type=int, default=1, help="threads")
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    pipeline = training_pipeline(
        options.kind,
        options.data,
        options.size,
        batch_size=options.batch_size,
        num_threads=options.workers,
        device_id=None,
        seed=0,
    )
    pipeline.build()

    def epoch() -> int:
        """Read as many batches as an epoch has; DALI's own epochs go on without an end."""
        images = 0
        while images < options.images:
            batch, _ = pipeline.run()
            pixels = batch.as_array()
            assert pixels.dtype == np.uint8
            images += len(pixels)
        return images

    serve(epoch, ("nvidia-dali-cuda120",))


if __name__ == "__main__":
    main()
