"""What all decoders share: the bound on pixels, and that copies of them go to other processes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from odd_images import sound
from PIL import Image

from resscale.data.augment import RandomResizedCrop
from resscale.data.decode import MAX_PIXELS
from resscale.data.decoders import build_decoder, why_not


def test_the_bound_on_pixels_is_pillows() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 2 * Image.MAX_IMAGE_PIXELS == MAX_PIXELS  # Pillow warns at the half, and refuses here


@pytest.mark.parametrize("name", ["native", "nvimgcodec", "simplejpeg", "pillow"])
def test_a_copy_through_pickle_decodes_alike(name: str) -> None:
    if reason := why_not(name):
        pytest.skip(reason)
    decoder, crop = build_decoder(name), RandomResizedCrop(32)
    uniform = np.random.default_rng(1).random(crop.num_uniforms)
    found, expected = (np.full((32, 32, 3), 77, dtype=np.uint8) for _ in range(2))
    decoder.decode(sound()["4:2:0"], crop, uniform, expected)
    pickle.loads(pickle.dumps(decoder)).decode(sound()["4:2:0"], crop, uniform, found)
    assert np.array_equal(found, expected)
