"""Loaders on torch's DataLoader: `python torch_loaders.py torchvision FOLDER --workers 0`.

Each as its documentation has it for training at 224 pixels, in its cheapest form that ends in a
uint8 batch: normalisation is left to the device, as in ours.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from serve import serve
from torch.utils.data import DataLoader

Options = argparse.Namespace


def pil_transform(size: int) -> Any:
    """Return torchvision's training transform on PIL images, up to a uint8 tensor."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.PILToTensor(),
        ]
    )


def loader_of(dataset: Any, options: Options, **more: Any) -> DataLoader[Any]:
    """Return torch's loader; a worker, where there is one, stays over the epochs."""
    return DataLoader(
        dataset,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        **more,
    )


def torchvision_pil(options: Options) -> Iterable[Any]:
    """ImageFolder, PIL, default collation."""
    from torchvision.datasets import ImageFolder

    dataset = ImageFolder(options.data, pil_transform(options.size))
    return loader_of(dataset, options, batch_size=options.batch_size, shuffle=True)


def torchvision_v2(options: Options) -> Iterable[Any]:
    """ImageFolder, decode_image, transforms v2 on tensors."""
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_image, read_file
    from torchvision.transforms import v2

    transform = v2.Compose(
        [v2.RandomResizedCrop(options.size, antialias=True), v2.RandomHorizontalFlip()]
    )

    def load(path: str) -> torch.Tensor:
        try:
            return decode_image(read_file(path), ImageReadMode.RGB)
        except RuntimeError:  # CMYK: this decoder has no such conversion
            from PIL import Image

            return v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))

    dataset = ImageFolder(options.data, transform, loader=load)
    return loader_of(dataset, options, batch_size=options.batch_size, shuffle=True)


def timm_folder(options: Options) -> Iterable[Any]:
    """timm's ImageFolder reader, its training transform and its fast collation."""
    from timm.data import create_dataset
    from timm.data.loader import fast_collate

    dataset = create_dataset("", options.data, is_training=True)
    dataset.transform = _timm_transform(options.size)
    return loader_of(
        dataset, options, batch_size=options.batch_size, shuffle=True, collate_fn=fast_collate
    )


def timm_wds(options: Options) -> Iterable[Any]:
    """timm's WebDataset reader, the same transform and collation."""
    from timm.data import create_dataset
    from timm.data.loader import fast_collate

    shards = sorted(Path(options.data).glob("*.tar"))
    names = f"{shards[0].name[:-10]}{{000000..{len(shards) - 1:06d}}}.tar"
    dataset = create_dataset(
        "wds/", options.data, split=names, is_training=True, num_samples=options.images
    )
    dataset.transform = _timm_transform(options.size)
    return loader_of(dataset, options, batch_size=options.batch_size, collate_fn=fast_collate)


def _timm_transform(size: int) -> Any:
    from timm.data import create_transform

    # use_prefetcher leaves normalisation to the device; the rest of timm's defaults is what all
    # others do here, too.
    return create_transform(
        size, is_training=True, use_prefetcher=True, color_jitter=None, interpolation="bilinear"
    )


def webdataset_pil(options: Options) -> Iterable[Any]:
    """The webdataset library's pipeline with PIL, and torchvision's transform."""
    import webdataset

    shards = [str(path) for path in sorted(Path(options.data).glob("*.tar"))]
    transform = pil_transform(options.size)
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0)
        .shuffle(1000)
        .decode("pilrgb")
        .to_tuple("jpg;png", "cls")
        .map_tuple(transform, None)
        .batched(options.batch_size)
    )
    return webdataset.WebLoader(dataset, num_workers=options.workers, batch_size=None)


def litdata_stream(options: Options) -> Iterable[Any]:
    """litData's StreamingDataset and loader; it decodes with torchvision, so transforms v2."""
    import litdata
    from torchvision.transforms import v2

    transform = v2.Compose(
        [v2.RandomResizedCrop(options.size, antialias=True), v2.RandomHorizontalFlip()]
    )

    class Photos(litdata.StreamingDataset):  # type: ignore[misc, no-any-unimported]
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return transform(_three_channels(sample["image"])), sample["label"]

    return litdata.StreamingDataLoader(  # type: ignore[no-any-return]
        Photos(options.data, shuffle=True, drop_last=False),
        batch_size=options.batch_size,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )


def _three_channels(image: Any) -> torch.Tensor:
    """Return the colour image of what litData gives: a tensor, or PIL where it was no JPEG."""
    from torchvision.transforms.v2 import functional

    if not isinstance(image, torch.Tensor):
        image = functional.pil_to_tensor(image.convert("RGB"))
    # One in a hundred is grey or CMYK: what becomes of its colours costs nothing that counts.
    return image.expand(3, -1, -1) if len(image) == 1 else image[:3]


def streaming_mds(options: Options) -> Iterable[Any]:
    """MosaicML's StreamingDataset of a local folder, and torchvision's transform on PIL."""
    from streaming import StreamingDataset

    transform = pil_transform(options.size)

    class Photos(StreamingDataset):  # type: ignore[misc, no-any-unimported]
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return transform(sample["image"].convert("RGB")), sample["label"]

    dataset = Photos(local=options.data, shuffle=True, batch_size=options.batch_size)
    return loader_of(dataset, options, batch_size=options.batch_size)


LOADERS: dict[str, tuple[Callable[[Options], Iterable[Any]], str]] = {
    "torchvision": (torchvision_pil, "torchvision"),
    "torchvision-v2": (torchvision_v2, "torchvision"),
    "timm": (timm_folder, "timm"),
    "timm-wds": (timm_wds, "timm"),
    "webdataset": (webdataset_pil, "webdataset"),
    "litdata": (litdata_stream, "litdata"),
    "streaming": (streaming_mds, "mosaicml-streaming"),
}


def read_epoch(loader: Iterable[Any]) -> int:
    """Read all batches; return the number of images."""
    images = 0
    for image, *_ in loader:
        assert image.dtype == torch.uint8
        images += len(image)
    return images


def main() -> None:
    """Read the command line and serve epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=LOADERS)
    parser.add_argument("data")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: the main one")
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    build, distribution = LOADERS[options.name]
    loader = build(options)
    serve(lambda: read_epoch(loader), (distribution, "torch", "torchvision", "pillow"))


if __name__ == "__main__":
    main()
