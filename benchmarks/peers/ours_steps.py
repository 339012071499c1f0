"""`resscale fit` in blocks of steps: `python ours_steps.py --batch_size 256 [--shards FOLDER]`.

The whole of it, with all its callbacks. Without shards its batches are random pixels that lie on
the device, as those of the other loops.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from lightning.pytorch import Callback
from step_turns import BlockTurns, step_parser

from resscale.bench.synthetic import SyntheticLoader, synthetic_batches
from resscale.cli_train import Session

_MOST_STEPS = 1_000_000


class Blocks(Callback):
    """Ends a block of steps, and waits for the word for the next.

    Args:
        turns: with whoever asks.
        steps: of a block.
        batch_size: images of a step.
    """

    def __init__(self, turns: BlockTurns, steps: int, batch_size: int) -> None:
        self.turns = turns
        self.steps = steps
        self.batch_size = batch_size
        self._done = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the first block."""
        self.turns.begin()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a block where it has all its steps."""
        self._done += 1
        if self._done % self.steps == 0:
            self.turns.end(self.steps * self.batch_size)
            trainer.should_stop = not self.turns.begin()


def words_of(options: argparse.Namespace, run_dir: str) -> list[str]:
    """Return the options of `resscale fit`."""
    compile_it = options.compile == "true"
    values = {
        "run_dir": run_dir,
        "model.model": options.model,
        "model.num_classes": options.num_classes,
        "model.compile": "inductor" if compile_it else "null",
        "model.compile_mode": options.compile_mode if compile_it else None,
        # Random pixels are learnt at no rate: a small one keeps the numbers finite.
        "model.optimizer.lr": 1e-4,
        "data.train": options.shards or "pipe:true",
        "data.epoch_samples": None if options.shards else options.batch_size * _MOST_STEPS,
        "data.num_workers": None if options.shards else 0,
        "data.image_size": options.image_size,
        "data.global_batch_size": options.batch_size,
        "trainer.accelerator": "gpu" if options.device == "cuda" else "cpu",
        "trainer.devices": 1,
        "trainer.max_epochs": _MOST_STEPS if options.shards else 1,
        "trainer.precision": "bf16-mixed" if options.precision == "bf16" else "32-true",
        "num_threads": options.num_threads,
    }
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def main() -> None:
    """Read the command line and train blocks of steps."""
    parser = step_parser()
    parser.add_argument("--shards", help="train on these images in place of random pixels")
    options = parser.parse_args()
    turns = BlockTurns(options.device, ("resscale", "lightning", "torch"))
    with tempfile.TemporaryDirectory() as folder:
        session = Session("fit", words_of(options, f"{folder}/run"))
        data: Any = session.data
        if not options.shards:
            batches = synthetic_batches(
                options.batch_size, options.image_size, 3, options.num_classes
            )
            moved = [
                data.transfer_batch_to_device(batch, torch.device(options.device), 0)
                for batch in batches
            ]
            loader = SyntheticLoader(moved, _MOST_STEPS)
            data.train_dataloader = lambda: loader
            data._train_loader = loader
        # Last, so that what all others do at a batch's end is in the block.
        blocks = Blocks(turns, options.steps, options.batch_size)
        session.trainer.callbacks.append(blocks)  # type: ignore[attr-defined]
        session.trainer.fit(session.model, session.data)


if __name__ == "__main__":
    main()
