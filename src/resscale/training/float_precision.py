"""Which kernels a GPU may take: cuDNN's fastest by trial, and TF32 in place of float32."""

from __future__ import annotations

import torch

from resscale.errors import UserInputError, nearest

# Most significant bits of a product's factors: float32 has 24, TF32 11, bfloat16 8.
PRECISIONS = ("highest", "high", "medium")


def choose_benchmark(asked: bool | None, deterministic: object, device: str) -> bool | None:
    """Return whether cuDNN tries its kernels for each new shape and keeps the fastest.

    On a GPU the default is yes, as a run sees few shapes and each of them often. Which kernel wins
    may differ from process to process, and with it the order of sums.

    Args:
        asked: `trainer.benchmark`; None: not said.
        deterministic: `trainer.deterministic`: a trial would not be.
        device: "cuda", "mps" or "cpu".
    """
    if asked is not None or device != "cuda":
        return asked
    return not deterministic


def set_float32_precision(name: str, device: str) -> None:
    """Say how a GPU may compute products of float32 numbers, in convolutions and matrices alike.

    torch's own default is "highest" for matrices and TF32 for convolutions. Mixed precision
    computes convolutions in 16 bits, whatever is said here.

    Args:
        name: "highest" is float32, "high" TF32 where the GPU has it; "medium" also allows
            bfloat16 to matrix products. Elsewhere than on a GPU all are float32.
        device: "cuda", "mps" or "cpu".

    Raises:
        UserInputError: another name.
    """
    if name not in PRECISIONS:
        raise UserInputError(
            f"float32_precision={name} is not one of {', '.join(PRECISIONS)}."
            f"{nearest(name, PRECISIONS)}"
        )
    if device == "cuda":
        torch.set_float32_matmul_precision(name)
        torch.backends.cudnn.allow_tf32 = name != "highest"
