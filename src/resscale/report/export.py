"""Plain weights in one file: `.safetensors` or `.pth` as bytes, and bytes onto disk atomically."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from resscale.errors import UserInputError
from resscale.models import ResNet

SUFFIXES = (".safetensors", ".pth", ".onnx")


def check_destination(out: Path, source: Path, *, overwrite: bool) -> None:
    """Find what forbids to write `out` before anything is read.

    Args:
        out: the file to be written.
        source: what the user exports from.
        overwrite: replace a file that is there.

    Raises:
        UserInputError: an unknown ending, no folder, a file that is there already.
    """
    if out.suffix not in SUFFIXES:
        raise UserInputError(
            f"{out} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}: the ending says what "
            f"is written. Choose {out.with_suffix(SUFFIXES[0]) if out.name else 'a name'}, say."
        )
    if not out.parent.is_dir():
        raise UserInputError(
            f"{out} lies in {out.parent}, and there is no such folder. Make it, or choose another."
        )
    if not os.access(out.parent, os.W_OK):
        raise UserInputError(f"{out.parent} is not writable; choose another folder for {out.name}.")
    if out.is_dir():
        raise UserInputError(f"{out} is a folder; name a file.")
    if out.exists() and source.exists() and out.samefile(source):
        raise UserInputError(f"{out} is what the weights are read from; choose another name.")
    refuse_existing(out, overwrite=overwrite)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that is there already, unless it may be replaced.

    Raises:
        UserInputError: it is there.
    """
    if path.exists() and not overwrite:
        raise UserInputError(
            f"{path} is there already; choose another name, or replace it with --overwrite true."
        )


def plain_state(net: ResNet) -> dict[str, Tensor]:
    """Return the net's state dict: torchvision's or timm's keys, contiguous tensors on the CPU."""
    return {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}


def encode_safetensors(net: ResNet) -> bytes:
    """Return the weights as a `.safetensors` file; equal weights give equal bytes."""
    # The one entry that other readers of these files ask for.
    return save(plain_state(net), metadata={"format": "pt"})


def encode_torch(net: ResNet) -> bytes:
    """Return the weights as a `.pth` file: a state dict that `torch.load` reads without code."""
    file = io.BytesIO()
    torch.save(plain_state(net), file)
    return file.getvalue()


def sha256(content: bytes) -> str:
    """Return the SHA-256 of a file's content, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary file beside `path`, sync and rename: the old file or the new one.

    Raises:
        UserInputError: the disk is full, or the folder not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if temporary.is_file():
            temporary.unlink()
        raise UserInputError(
            f"{path} cannot be written ({error.strerror}): {len(content):,} bytes are needed. Free "
            f"space, or choose another folder."
        ) from error
