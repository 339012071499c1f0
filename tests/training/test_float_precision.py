"""Kernels of a GPU by option; on a CPU nothing changes."""

import pytest
import torch

from resscale.errors import UserInputError
from resscale.training.float_precision import choose_benchmark, set_float32_precision


@pytest.fixture(autouse=True)
def _as_before() -> object:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize(
    ("asked", "deterministic", "device", "chosen"),
    [
        (None, None, "cuda", True),
        (None, True, "cuda", False),
        (None, "warn", "cuda", False),
        (False, None, "cuda", False),
        (True, True, "cuda", True),  # the user's word
        (None, None, "cpu", None),
    ],
)
def test_kernels_are_tried_on_a_gpu_unless_somebody_is_against_it(
    asked: bool | None, deterministic: object, device: str, chosen: bool | None
) -> None:
    assert choose_benchmark(asked, deterministic, device) is chosen


def test_float32_is_said_for_convolutions_and_matrices_alike() -> None:
    for name, tf32 in (("highest", False), ("high", True), ("medium", True)):
        set_float32_precision(name, "cuda")
        assert torch.get_float32_matmul_precision() == name
        assert torch.backends.cudnn.allow_tf32 is tf32


def test_a_cpu_is_left_alone() -> None:
    before = torch.get_float32_matmul_precision()
    set_float32_precision("medium", "cpu")
    assert torch.get_float32_matmul_precision() == before


def test_another_precision_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"float32_precision=hihg.*Did you mean 'high'"):
        set_float32_precision("hihg", "cpu")
