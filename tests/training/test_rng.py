"""Random numbers go on where they were."""

import random
from pathlib import Path

import numpy as np
import torch

from resscale.training.rng import capture_rng, restore_rng

CPU = torch.device("cpu")


def draw() -> list[float]:
    """Numbers of all generators; `gauss` keeps half a pair back between two calls."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_what_is_drawn_behind_a_restore_is_what_was_drawn_behind_the_capture() -> None:
    draw()
    state = capture_rng(CPU)
    expected = [draw() for _ in range(3)]
    assert draw() != expected[0]
    restore_rng(state, CPU)
    assert [draw() for _ in range(3)] == expected


def test_a_state_goes_through_a_file_that_is_loaded_safely(tmp_path: Path) -> None:
    state = capture_rng(CPU)
    torch.save(state, tmp_path / "rng.pt")
    expected = draw()
    restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True), CPU)
    assert draw() == expected


def test_a_state_is_not_changed_by_what_is_drawn_later() -> None:
    state = capture_rng(CPU)
    first = draw()
    restore_rng(state, CPU)
    draw()
    restore_rng(state, CPU)
    assert draw() == first


def test_a_gpus_state_is_passed_over_on_a_cpu() -> None:
    state = capture_rng(CPU)
    assert state["cuda"] is None
    restore_rng({**state, "cuda": torch.zeros(16, dtype=torch.uint8)}, CPU)
