"""Bytes per parameter that training keeps on two real ranks, by strategy: counted, on the CPU.

    OMP_NUM_THREADS=1 python benchmarks/live_memory.py      # needs the extra [deepspeed]

Two processes train three steps under torch's DDP and under DeepSpeed itself, with images so small
that activations do not count, and list the tensors that are alive in the third step. What
`benchmarks/memory.py` computes must appear for n = 2 ranks: DDP 12; ZeRO 1 and 2 have 4 + 8/n
between steps and 4/n of gradients behind backward; ZeRO 3 has 16/n, and 4 more where it keeps the
net gathered. Nothing is accumulated, so ZeRO 1 has no gradients of other ranks' shares.
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from resscale.models import create_model


def live_bytes() -> int:
    """Return the bytes of all tensors that Python knows in this process, each storage once.

    What autograd alone holds is not among them.
    """
    gc.collect()
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        # Exactly these: subclasses may have no memory, and others may compute something when asked.
        if type(thing) not in (Tensor, nn.Parameter) or thing.layout is not torch.strided:
            continue
        # ZeRO-3's shares hang at the parameters.
        for tensor in (thing, thing.grad if thing.is_leaf else None, vars(thing).get("ds_tensor")):
            if tensor is not None:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(sizes.values())


def train_live(rank: int, name: str, stage: int, released: bool, meeting: str) -> tuple[float, ...]:
    """Train three steps as one of two ranks; return bytes per parameter in the third.

    Args:
        rank: 0 or 1.
        name: of the net.
        stage: 0 for DDP, 1 to 3 for ZeRO.
        released: ZeRO-3 gives weights back between forward and backward.
        meeting: a file that does not exist yet, where the ranks meet.

    Returns:
        Behind forward, behind backward, and behind the step; buckets of 1 MiB included.
    """
    torch.set_num_threads(1)
    os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": str(rank)}
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=2)
    net: Any = create_model(name)
    count = sum(parameter.numel() for parameter in net.parameters())
    optimizer: Any = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    if stage:
        import deepspeed

        # It logs its settings to where the table goes.
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": 2**18}
        if released:
            zero |= {"stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0}
        config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": zero}
        config |= {"zero_allow_untested_optimizer": True}
        net = optimizer = deepspeed.initialize(model=net, optimizer=optimizer, config=config)[0]
    else:
        net = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
    for _ in range(3):
        loss = functional.cross_entropy(net(torch.ones(2, 3, 32, 32)), torch.tensor([0, 1]))
        forward = live_bytes()
        (net if stage else loss).backward(*([loss] if stage else []))
        backward = live_bytes()
        optimizer.step()
        if not stage:
            optimizer.zero_grad()
        step = live_bytes()
    return forward / count, backward / count, step / count


def main() -> None:
    """Read the command line, train under each strategy, and print what is alive."""
    parser = argparse.ArgumentParser(description="Bytes per parameter of two ranks, counted.")
    parser.add_argument("--model", default="resnet18", help="(%(default)s)")
    name = parser.parse_args().model
    print("| strategy | behind forward | behind backward | behind the step |")
    print(f"|{' --- |' * 4}")
    spawn = multiprocessing.get_context("spawn")
    for stage, released in ((0, False), (1, False), (2, False), (3, False), (3, True)):
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, spawn) as pool:
            meeting = f"{folder}/meeting"
            ranks = [pool.submit(train_live, r, name, stage, released, meeting) for r in (0, 1)]
            found, _ = (rank.result() for rank in ranks)
        title = f"ZeRO-{stage}{', released' if released else ''}" if stage else "DDP"
        print(f"| {title} | {' | '.join(f'{value:.1f}' for value in found)} |", flush=True)


if __name__ == "__main__":
    main()
