"""On a GPU: nvimgcodec_gpu gives the picture that Pillow gives, and takes damage as it does."""

from __future__ import annotations

import math
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from odd_images import damaged, sound

from resscale.data.augment import CenterCrop, Crop, RandomResizedCrop
from resscale.data.decode import DecodeError, Decoder, Pixels
from resscale.data.decode_pillow import PillowDecoder
from resscale.data.decoders import build_decoder, why_not

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none here"),
    pytest.mark.skipif(
        why_not("nvimgcodec_gpu") is not None, reason=str(why_not("nvimgcodec_gpu"))
    ),
]
CROPS: tuple[Crop, ...] = (CenterCrop(64, 72), RandomResizedCrop(64, (0.2, 0.6)))


def decoded(decoder: Decoder, raw: bytes, crop: Crop, seed: int = 5) -> Pixels:
    out = np.full((crop.size, crop.size, 3), 77, dtype=np.uint8)
    decoder.decode(raw, crop, np.random.default_rng(seed).random(crop.num_uniforms), out)
    return out


def test_sound_files_have_pillows_picture() -> None:
    for kind, raw in sound().items():
        if kind == "cut-short-and-ended":
            continue  # what follows the damage is up to each decoder
        for crop in CROPS:
            found = decoded(build_decoder("nvimgcodec_gpu"), raw, crop)
            error = ((found - decoded(PillowDecoder(), raw, crop).astype(float)) ** 2).mean()
            # Another inverse transform, and so other rounding.
            assert error == 0 or 10 * math.log10(255**2 / error) > 38, kind


def test_damaged_files_are_errors() -> None:
    for raw in damaged().values():
        with pytest.raises(DecodeError):
            decoded(build_decoder("nvimgcodec_gpu"), raw, CROPS[0])


def test_threads_decode_as_one() -> None:
    decoder, raw = build_decoder("nvimgcodec_gpu"), sound()["4:2:0"]
    expected = [decoded(decoder, raw, CROPS[1], seed) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: decoded(decoder, raw, CROPS[1], seed), range(16)))
    assert all(map(np.array_equal, found, expected))
