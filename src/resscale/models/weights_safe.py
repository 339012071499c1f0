"""`torch.load` that never executes what a pickle asks for, and says plainly when it would have."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from resscale.errors import DataFormatError

_ZIP_MAGIC = b"PK\x03\x04"


class Inert:
    """Stands for an object that a checkpoint holds beside its weights: forgets what it is given."""

    def __new__(cls, *arguments: object) -> Inert:
        """Take any arguments, as unpickling hands them over, and keep none."""
        return object.__new__(cls)

    def __init__(self, *arguments: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# Plain records without code of their own. None of these classes is imported: `Inert` stands for
# each, so a file can do nothing by naming them, and DeepSpeed need not be installed.
_RECORDS = (
    "argparse.Namespace",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


def load_without_code(path: Path) -> Any:
    """Return what `torch.load(weights_only=True)` gives on the CPU, known records left empty.

    Tensors of a zip-format file stay on disk until they are used.

    Raises:
        DataFormatError: damaged, or readable only by executing a pickle.
    """
    stand_ins: list[Any] = [(Inert, name) for name in _RECORDS]
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == _ZIP_MAGIC
        if is_zip:
            _check_stored(path)
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except DataFormatError:
        raise
    except Exception as error:  # a malformed pickle can raise nearly anything
        raise DataFormatError(_why_unreadable(path, error)) from error


def _check_stored(path: Path) -> None:
    """Refuse compressed entries, which torch never writes.

    Mapped into memory their bytes would be taken for numbers, and a small file could fill it.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            # TorchScript compresses its code, which is not read; it has a message of its own.
            if entry.compress_type != zipfile.ZIP_STORED and "/code/" not in entry.filename:
                raise DataFormatError(
                    f"{path} is a compressed archive, and a file of weights must be as torch.save "
                    f"wrote it: it was packed anew. Name the file that was packed, or copy or "
                    f"download it again."
                )


def _why_unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    named = re.search(r"GLOBAL (\S+)", text)
    if isinstance(error, pickle.UnpicklingError) and named:
        return (
            f"{path} cannot be read without executing code: its pickle asks for {named[1]}, and "
            f"only tensors and plain values are read. Get the weights as .safetensors, or, if you "
            f"trust its author, save its state dict alone where it was made: "
            f"torch.save(model.state_dict(), 'weights.pth')."
        )
    if "TorchScript" in text:
        return (
            f"{path} is a TorchScript archive, which holds code; weights must be a state dict. "
            f"Save one: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')."
        )
    # torch's own text goes on with advice to switch the safety off.
    reason = re.split(r"[.:] |\n", text.strip())[0] or type(error).__name__
    return (
        f"{path} is damaged or no file of weights ({reason}); copy or download it again, or name "
        f"another."
    )
