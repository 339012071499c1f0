"""torch.compile, in place: the module stays itself, and so do the names of its weights."""

from __future__ import annotations

import shutil

from torch import nn

from resscale.errors import UserInputError, nearest

# "eager" and "aot_eager" compile nothing: they trace, for finding out what does not compile.
BACKENDS = ("inductor", "aot_eager", "eager", "cudagraphs")


def compile_network(network: nn.Module, backend: str) -> None:
    """Have a network compiled when it is first called.

    Args:
        network: keeps its class, its hooks and the names of its weights.
        backend: one of `BACKENDS`.

    Raises:
        UserInputError: another backend, or no C++ compiler for "inductor".
    """
    if backend not in BACKENDS:
        raise UserInputError(
            f"model.compile={backend} is not one of {', '.join(BACKENDS)}; leave it out to run "
            f"eagerly.{nearest(backend, BACKENDS)}"
        )
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        raise UserInputError(
            "model.compile=inductor needs a C++ compiler, and there is no g++ and no clang++: "
            "install one (Debian: apt install g++), or leave the option out."
        )
    network.compile(backend=backend)
