"""A file or folder of weights → a state dict; the form is found from the content."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from resscale.errors import DataFormatError, UserInputError, nearest
from resscale.models.weights_deepspeed import is_part_of_deepspeed, read_deepspeed
from resscale.models.weights_safe import load_without_code

ENTRIES = ("state_dict", "model", "model_state_dict", "state_dict_ema")
"""Where a checkpoint keeps its weights, in the order in which they are looked for."""


@dataclass(frozen=True)
class WeightsFile:
    """What was read: tensors by the file's own keys, and which entry held them ("": the whole)."""

    tensors: dict[str, Tensor]
    entry: str


def read_weights(path: Path) -> WeightsFile:
    """Read `.pth`, `.pt`, `.bin`, `.ckpt`, `.safetensors` or a DeepSpeed folder, on the CPU.

    Raises:
        UserInputError: there is no such file.
        DataFormatError: damaged, without weights, or readable only by executing a pickle.
    """
    if path.is_dir():
        tensors, entry = read_deepspeed(path)
    else:
        _check_exists(path)
        if is_part_of_deepspeed(path):
            tensors, entry = read_deepspeed(path.parent)
        elif _is_safetensors(path):
            tensors, entry = _read_safetensors(path), ""
        else:
            tensors, entry = find_state_dict(load_without_code(path), path)
    _check_tensors(tensors, path)
    return WeightsFile(tensors, entry)


def find_state_dict(content: object, path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the state dict in `content`, and the one of `ENTRIES` that it was under, or "".

    Raises:
        DataFormatError: none is there.
    """
    if isinstance(content, Mapping):
        for entry in ENTRIES:
            inner = content.get(entry)
            if isinstance(inner, Mapping) and (tensors := _tensors(inner)):
                return tensors, entry
        if tensors := _tensors(content):
            return tensors, ""
        found = "the keys " + ", ".join(map(repr, list(content)[:5])) if content else "no keys"
    else:
        found = f"a {type(content).__name__}"
    raise DataFormatError(
        f"{path} holds no weights: it must be a state dict or have one under "
        f"{', '.join(map(repr, ENTRIES))}, and it has {found}. Save model.state_dict() to a file."
    )


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse what `copy_` would refuse, before anything is copied."""
    for key, value in tensors.items():
        if (what := _why_not_plain(value)) is not None:
            raise DataFormatError(
                f"{path}: {key!r} is {what}; weights must be dense, real and not quantized. Save "
                f"them so."
            )


def _why_not_plain(value: Tensor) -> str | None:
    if value.is_meta:
        return "a tensor on the meta device, which holds no values"
    if value.is_nested:
        return "a nested tensor, which has no single shape"
    is_plain = value.layout == torch.strided and not value.is_quantized and not value.is_complex()
    if is_plain:
        try:
            value.new_zeros(1).float()
            return None
        except (NotImplementedError, RuntimeError):
            pass  # bits, or several numbers in one byte
    return f"a {value.layout} tensor of {value.dtype}"


def _is_safetensors(path: Path) -> bool:
    """Tell by the name, or by the first bytes: the header's length and the brace that opens it."""
    if path.suffix == ".safetensors":
        return True
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserInputError(
            f"{path} cannot be opened ({error.strerror}); make it readable or name another file."
        ) from error
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise DataFormatError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again."
        ) from error
    if not tensors:
        raise DataFormatError(f"{path} holds no weights: no tensor is in it. Name another file.")
    return tensors


def _check_exists(path: Path) -> None:
    if path.is_file():
        return
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserInputError(
        f"There is no weights file {path}; name an existing file, DeepSpeed folder or URL."
        f"{nearest(path.name, siblings)}"
    )
