"""torch.compile, in place: the module stays itself, and so do the names of its weights."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch import nn

from resscale.errors import UserInputError, nearest

# "eager" and "aot_eager" compile nothing: they trace, for finding out what does not compile.
BACKENDS = ("inductor", "aot_eager", "eager", "cudagraphs")
# Inductor's own names of what it takes time for.
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_GRAPH_MODES = ("reduce-overhead", "max-autotune")
# Each size of image is compiled once for training and once for evaluation, and each of them again
# where autocast differs. torch's own limit is 8, and past it a net runs eagerly, without a word
# that anybody would read.
_MOST_COMPILATIONS = 64


def compile_network(network: nn.Module, backend: str | None, mode: str | None = None) -> None:
    """Have a network compiled when it is first called, once for each shape that it is called with.

    Shapes are constants of what is compiled, never symbols: a run sees few sizes of images
    (progressive resizing, evaluation), and kernels for a known size are the faster ones.

    Args:
        network: keeps its class, its hooks and the names of its weights.
        backend: one of `BACKENDS`; None: leave it as it is.
        mode: one of `MODES`, of "inductor" alone; None: "default".

    Raises:
        UserInputError: another backend or mode, or no C++ compiler for "inductor".
    """
    if backend is None and mode is None:
        return
    if backend is None:
        raise UserInputError(
            f"model.compile_mode={mode} says how inductor compiles, and nothing is to be compiled: "
            f"add model.compile=inductor, or leave the mode out."
        )
    if backend not in BACKENDS:
        raise UserInputError(
            f"model.compile={backend} is not one of {', '.join(BACKENDS)}; leave it out to run "
            f"eagerly.{nearest(backend, BACKENDS)}"
        )
    if mode is not None and mode not in MODES:
        raise UserInputError(
            f"model.compile_mode={mode} is not one of {', '.join(MODES)}.{nearest(mode, MODES)}"
        )
    if mode is not None and backend != "inductor":
        raise UserInputError(
            f"model.compile_mode={mode} is a mode of inductor, and model.compile={backend}: choose "
            f"inductor, or leave the mode out."
        )
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        raise UserInputError(
            "model.compile=inductor needs a C++ compiler, and there is no g++ and no clang++: "
            "install one (Debian: apt install g++), or leave the option out."
        )
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MOST_COMPILATIONS)
    network.compile(backend=backend, mode=mode, dynamic=False)


def captures_graphs(backend: str | None, mode: str | None) -> bool:
    """Tell whether a network's passes would be recorded as CUDA graphs.

    Args:
        backend: of `model.compile`.
        mode: of `model.compile_mode`.
    """
    return backend == "cudagraphs" or (backend == "inductor" and mode in _GRAPH_MODES)


def check_graphs(
    backend: str | None, mode: str | None, *, device: str, deepspeed: bool, accumulate: int
) -> None:
    """Refuse CUDA graphs where they cannot be right, before the first step.

    A graph replays kernels on the addresses that they were recorded with.

    Args:
        backend: of `model.compile`.
        mode: of `model.compile_mode`.
        device: "cuda", "cpu" or "mps".
        deepspeed: the strategy is one of DeepSpeed's.
        accumulate: micro-batches per optimizer step and rank.

    Raises:
        UserInputError: a device without them, weights or gradients that move, or gradients that
            must outlive the next replay.
    """
    if not captures_graphs(backend, mode):
        return
    asked = f"model.compile_mode={mode}" if mode in _GRAPH_MODES else f"model.compile={backend}"
    instead = "take model.compile=inductor with compile_mode default or max-autotune-no-cudagraphs"
    if device != "cuda":
        raise UserInputError(
            f"{asked} records CUDA graphs, and training runs on {device}: {instead}."
        )
    if deepspeed:
        raise UserInputError(
            f"{asked} records CUDA graphs, and under DeepSpeed weights and gradients do not stay "
            f"where they are: {instead}, or take trainer.strategy=ddp."
        )
    if accumulate > 1:
        raise UserInputError(
            f"{asked} records CUDA graphs, whose next replay overwrites the gradients that "
            f"{accumulate} micro-batches of a step are to add up: {instead}, or choose "
            f"data.micro_batch_size so that a step is one micro-batch of each rank."
        )
