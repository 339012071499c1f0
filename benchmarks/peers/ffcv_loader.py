"""ffcv: `python ffcv_loader.py PHOTOS.beton`, the file that ffcv_pack.py has written."""

from __future__ import annotations

import argparse

import torch
from ffcv.fields.decoders import IntDecoder
from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage
from serve import serve


def main() -> None:
    """Read the command line and serve epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--workers", type=int, default=1, help="threads")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    decode = RandomResizedCropRGBImageDecoder((options.size, options.size))
    loader = Loader(
        options.data,
        batch_size=options.batch_size,
        num_workers=options.workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=False,
        pipelines={
            "image": [decode, RandomHorizontalFlip(), ToTensor(), ToTorchImage()],
            "label": [IntDecoder(), ToTensor()],
        },
    )

    def epoch() -> int:
        images = 0
        for image, _ in loader:
            assert image.dtype == torch.uint8
            images += len(image)
        return images

    serve(epoch, ("ffcv", "numba", "torch", "numpy"))


if __name__ == "__main__":
    main()
