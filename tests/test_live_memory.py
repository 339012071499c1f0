"""`benchmarks/live_memory.py`: tensors are counted by their storages."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "live_memory.py"


@pytest.fixture(scope="module")
def live() -> ModuleType:
    """The script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("live_memory", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_storage_counts_once_however_many_tensors_look_at_it(live: ModuleType) -> None:
    before = live.live_bytes()
    values = torch.zeros(1_000_000)
    views = [values[10:], values.view(1000, 1000)]
    assert live.live_bytes() - before == 4_000_000
    del values, views
    assert live.live_bytes() == before


def test_gradients_count(live: ModuleType) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1_000_000))
    before = live.live_bytes()
    parameter.sum().backward()
    parameter.grad.add_(1)  # of a storage of its own, where expand() gave one value
    assert live.live_bytes() - before == 4_000_000
