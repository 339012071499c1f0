"""On a GPU: policies, erasing and mixing give the bytes and numbers that they give on a CPU."""

import numpy as np
import pytest
import torch

from resscale.training.apply_policy import OPERATIONS, apply_layers, fill_levels
from resscale.training.erasing import ErasingConfig, draw_erasures, erase
from resscale.training.mixing import MixingConfig, draw_mix, mix
from resscale.training.policies import PolicyConfig, draw_policy

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: torch sees none here"
)
ROWS, SIZE = 256, 64
IDS = np.arange(ROWS)


def pixels() -> torch.Tensor:
    """Smooth gradients with noise: uint8 (256, 3, 64, 64), channels_last."""
    generator = torch.Generator().manual_seed(0)
    slopes = torch.linspace(0, 200, SIZE).view(1, SIZE, 1, 1)
    noise = torch.randint(0, 56, (ROWS, SIZE, SIZE, 3), generator=generator)
    return (slopes + noise).to(torch.uint8).permute(0, 3, 1, 2)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", ["trivial_augment_wide", "rand-m9-mstd0.5-inc1"])
def test_policies_give_the_same_bytes(name: str, interpolation: str) -> None:
    layers = draw_policy(PolicyConfig(name), IDS, 3, SIZE, SIZE)
    used = {OPERATIONS[number] for layer in layers for number in layer.operations}
    assert len(used) >= 14
    results = [
        apply_layers(
            pixels().to(device),
            layers,
            bilinear=interpolation == "bilinear",
            fill=fill_levels((9,), 3, device),
        ).cpu()
        for device in (torch.device("cpu"), torch.device("cuda"))
    ]
    assert torch.equal(*results)


def test_erasing_and_mixing_give_the_same_numbers() -> None:
    erasures = draw_erasures(ErasingConfig(0.5), IDS, 3, SIZE, SIZE)
    label = torch.arange(ROWS)
    for first in range(4):
        drawn = draw_mix(MixingConfig(0.2, 1.0), first, 3, ROWS, SIZE, SIZE)
        assert drawn is not None
        found = []
        for device in ("cpu", "cuda"):
            images = erase(pixels().float().to(device), erasures, "zero", 0)
            targets = mix(images, label.to(device), drawn)
            assert targets.other is not None
            found.append((images.cpu(), targets.other.cpu()))
        torch.testing.assert_close(found[0], found[1])
