"""What is a file of weights, and what is not: every refusal is one sentence with its remedy."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from resscale.errors import DataFormatError, UserInputError
from resscale.models.weights_files import find_state_dict, read_weights

STATE = {"fc.weight": torch.ones(2, 3), "fc.bias": torch.zeros(2)}


def test_an_entry_goes_before_tensors_beside_it() -> None:
    content = {"rng_state": torch.zeros(4), "model": STATE}

    assert find_state_dict(content, Path("f")) == (STATE, "model")


def test_values_that_are_no_tensors_are_left_out() -> None:
    tensors, entry = find_state_dict({**STATE, "epoch": 3, 7: torch.ones(1)}, Path("f"))

    assert (set(tensors), entry) == (set(STATE), "")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "state_dict": {}}, "the keys 'epoch', 'state_dict'"),
        ({}, "no keys"),
        ([torch.ones(1)], "a list"),
        (torch.ones(1), "a Tensor"),
    ],
)
def test_content_without_weights_is_refused_by_what_it_is(content: object, found: str) -> None:
    with pytest.raises(DataFormatError, match=rf"^f holds no weights: .* it has {found}\. Save"):
        find_state_dict(content, Path("f"))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.eye(3).to_sparse(), "sparse_coo tensor of torch.float32"),
        (torch.ones(2, dtype=torch.complex64), "strided tensor of torch.complex64"),
        (torch.empty(2, dtype=torch.bits8), "strided tensor of torch.bits8"),
        (torch.empty(2, dtype=torch.float4_e2m1fn_x2), "strided tensor of torch.float4_e2m1fn_x2"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(
    tmp_path: Path, value: torch.Tensor, what: str
) -> None:
    torch.save({"w": value}, tmp_path / "w.pth")

    with pytest.raises(DataFormatError, match=f"'w' is a torch.{what}; weights must be dense"):
        read_weights(tmp_path / "w.pth")


def test_tensors_without_values_or_without_a_shape_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls nested tensors a prototype
        ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save({"w": torch.empty(2, device="meta")}, tmp_path / "meta.pth")
    torch.save({"w": ragged}, tmp_path / "nested.pth")

    with pytest.raises(DataFormatError, match="'w' is a tensor on the meta device, which holds no"):
        read_weights(tmp_path / "meta.pth")
    with pytest.raises(DataFormatError, match="'w' is a nested tensor, which has no single shape"):
        read_weights(tmp_path / "nested.pth")


@pytest.mark.parametrize("kept_bytes", [0, 1, 8, 100, 600, -1])
def test_a_torn_torch_file_is_damaged(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "weights.pth"
    torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:kept_bytes])

    with pytest.raises(DataFormatError, match=r"damaged or no file of weights .*copy or downl"):
        read_weights(path)


@pytest.mark.parametrize("kept_bytes", [0, 7, 40, -1])
def test_a_torn_safetensors_file_is_not_whole(tmp_path: Path, kept_bytes: int) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save(STATE)[:kept_bytes])

    with pytest.raises(DataFormatError, match="not a whole safetensors file"):
        read_weights(path)


def test_safetensors_without_a_tensor_hold_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(save({}, metadata={"format": "pt"}))

    with pytest.raises(DataFormatError, match="no tensor is in it"):
        read_weights(tmp_path / "w.safetensors")


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<!DOCTYPE html><title>Not found</title>")
    (tmp_path / "list.bin").write_text(json.dumps({"fc.bias": [0, 0]}))

    for name in ("page.pth", "list.bin"):
        with pytest.raises(DataFormatError, match=f"{name} is damaged or no file of weights"):
            read_weights(tmp_path / name)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match="is a folder, but no DeepSpeed checkpoint"):
        read_weights(tmp_path)
