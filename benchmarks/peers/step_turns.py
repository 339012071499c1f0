"""A training loop's turns: it waits for a word, trains a block of steps, and tells what that took.

Runs in the environments of other libraries too: Python's own modules, and torch for the device.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from serve import tree_cpu_s, versions_of


class BlockTurns:
    """Answers each line of the standard input with a block of steps, until its end.

    Args:
        device: "cuda" or "cpu".
        distributions: whose versions are told.
    """

    def __init__(self, device: str, distributions: Sequence[str]) -> None:
        # What libraries print must not come between the answers.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._device = device
        self._distributions = distributions
        self._is_ready = False
        self._cpu_s = 0.0
        self._started = 0.0

    def begin(self) -> bool:
        """Wait for a word and start the clocks; False: nobody wants more.

        The first block is not asked for: it compiles and warms up, and makes ready.
        """
        if self._is_ready and not sys.stdin.readline():
            return False
        self._wait()
        self._cpu_s, self._started = tree_cpu_s(), time.perf_counter()
        return True

    def end(self, images: int) -> None:
        """Tell what a block took."""
        self._wait()
        wall_s, cpu_s = time.perf_counter() - self._started, tree_cpu_s() - self._cpu_s
        if not self._is_ready:
            self._is_ready = True
            self._tell({"versions": versions_of(self._distributions)})
            return
        taken = {"images": images, "wall_s": wall_s, "cpu_s": cpu_s, "memory_bytes": 0}
        if self._device == "cuda":
            taken["memory_bytes"] = torch.cuda.max_memory_allocated()
        self._tell(taken)

    def _wait(self) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()

    def _tell(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)


def step_parser() -> argparse.ArgumentParser:
    """Return the parser of what all loops are told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--num_classes", type=int, default=1000)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("32", "bf16"), default="bf16")
    parser.add_argument("--compile", choices=("true", "false"), default="true")
    parser.add_argument("--compile_mode")
    parser.add_argument("--num_threads", type=int)
    return parser
