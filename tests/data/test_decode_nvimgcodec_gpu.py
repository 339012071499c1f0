"""The GPU's decoder as far as a machine without one can tell: why not, and the resize."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from odd_images import photo
from PIL import Image

from resscale.data.decode_nvimgcodec_gpu import resize_on_device
from resscale.data.decoders import choose_decoder, why_not
from resscale.errors import UserInputError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: see tests/gpu")
def test_without_a_gpu_it_is_refused_with_the_reason() -> None:
    with pytest.raises(UserInputError, match=r"data\.decoder=nvimgcodec_gpu cannot be used: "):
        choose_decoder("nvimgcodec_gpu")
    reason = why_not("nvimgcodec_gpu")
    assert reason is not None
    assert "torch sees no GPU here" in reason or "is not installed" in reason


def test_auto_never_takes_the_gpu() -> None:
    # It would take memory and time from training, unasked.
    assert choose_decoder("auto") != "nvimgcodec_gpu"


@pytest.mark.parametrize("edges", [(3, 5, 203, 155), (100, 50, 140, 93), (0, 0, 300, 20)])
def test_the_resize_on_the_device_is_pillows(edges: tuple[int, int, int, int]) -> None:
    cut = photo().crop(edges)
    expected = np.asarray(cut.resize((96, 96), Image.Resampling.BILINEAR)).astype(float)
    found = resize_on_device(torch.from_numpy(np.array(cut)), 96)
    assert found.dtype == torch.uint8
    assert found.shape == (96, 96, 3)
    error = ((found.numpy() - expected) ** 2).mean()
    assert error == 0 or 10 * math.log10(255**2 / error) > 52


def test_a_cut_at_its_own_size_is_left_as_it_is() -> None:
    pixels = torch.from_numpy(np.array(photo().crop((0, 0, 96, 96))))
    assert torch.equal(resize_on_device(pixels, 96), pixels)
