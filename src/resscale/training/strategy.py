"""Strategies by name: single device, DDP, DeepSpeed ZeRO; the illegal is refused with the reason.

DDP is the default, and the right one for this family: docs/distributed.md has the arithmetic.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import (
    DDPStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import distributed
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel as TorchDDP

from resscale.errors import UserInputError, nearest
from resscale.training.launcher import RankLauncher
from resscale.training.zero import ZeRO

STRATEGIES = ("auto", "ddp", "deepspeed_1", "deepspeed_2", "deepspeed_3")
Compression = Literal["bf16", "fp16"]

# What users of Lightning are used to write.
_OTHER_NAMES = {
    "deepspeed": "deepspeed_2",
    "deepspeed_stage_1": "deepspeed_1",
    "deepspeed_stage_2": "deepspeed_2",
    "deepspeed_stage_3": "deepspeed_3",
}


class DistributedDataParallel(DDPStrategy):
    """DDP whose ranks keep BatchNorm buffers of their own until they are averaged.

    Args:
        static_graph: the same layers take part in every step, so that DDP can skip its search for
            unused ones; legal for the whole family, stochastic depth included (it multiplies by 0).
        gradient_as_bucket_view: gradients live in the buckets that are reduced: a copy of them
            less.
        gradient_compression: reduce gradients in "bf16" or "fp16", half the bytes; None: float32.
        kwargs: options of Lightning's DDPStrategy, and so of torch's DistributedDataParallel.
    """

    def __init__(
        self,
        static_graph: bool = False,
        gradient_as_bucket_view: bool = True,
        gradient_compression: Compression | None = None,
        **kwargs: Any,
    ) -> None:
        # Broadcasting rank 0's buffers at each forward costs a collective a step and throws the
        # other ranks' statistics away; `average_batchnorm_statistics` keeps them all.
        # A parser that follows `kwargs` into torch gives None for what nobody set.
        if kwargs.get(_buffers_option()) is None:
            kwargs[_buffers_option()] = False
        super().__init__(
            static_graph=static_graph, gradient_as_bucket_view=gradient_as_bucket_view, **kwargs
        )
        self.gradient_compression = gradient_compression
        self._must_reduce = static_graph

    def configure_ddp(self) -> None:
        """Wrap the module; compress its gradients where asked."""
        super().configure_ddp()
        if self.gradient_compression is not None:
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[self.gradient_compression]
            assert isinstance(self.model, TorchDDP)
            # Lightning's option for hooks does nothing on a CPU, and torch's bf16 hook refuses it.
            self.model.register_comm_hook(None, _compressing(dtype))
        assert isinstance(self.model, TorchDDP)
        settle_buckets(self.model)

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """Accumulate without reducing, but for the first micro-batch of a static graph.

        torch 2.13 learns the graph while it reduces. Of what is reduced there, the next reduction
        takes the mean of equal values.
        """
        if self._must_reduce:
            self._must_reduce = False
            yield
            return
        with super().block_backward_sync():
            yield

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = RankLauncher(self.cluster_environment, self.num_processes, self.num_nodes)


def register_strategies() -> None:
    """Make the names of `STRATEGIES` mean ours (`auto` on several devices is `ddp`)."""
    StrategyRegistry.register(
        "ddp", DistributedDataParallel, "DDP with ranks whose exit codes count", override=True
    )
    for stage in (1, 2, 3):
        StrategyRegistry.register(
            f"deepspeed_{stage}", ZeRO, f"DeepSpeed ZeRO stage {stage}", override=True, stage=stage
        )


def choose_strategy(value: str | Strategy) -> str | Strategy:
    """Return what the trainer is given for the user's `trainer.strategy`.

    Raises:
        UserInputError: a name that is not one of `STRATEGIES`, or a strategy that is not ours.
    """
    if isinstance(value, SingleDeviceStrategy | DistributedDataParallel | ZeRO):
        return value
    if isinstance(value, Strategy):
        raise UserInputError(
            f"trainer.strategy={type(value).__module__}.{type(value).__name__} would not keep "
            f"BatchNorm and checkpoints as the others do; choose one of {', '.join(STRATEGIES)}, "
            f"or for its options resscale.training.strategy.DistributedDataParallel or "
            f"resscale.training.zero.ZeRO."
        )
    if "." in value:
        # The parser takes what stands here alone for a name.
        raise UserInputError(
            f"trainer.strategy={value} is a class: name it by trainer.strategy.class_path."
        )
    name = _OTHER_NAMES.get(value, value)
    if name not in STRATEGIES:
        raise UserInputError(
            f"trainer.strategy={value} is not one of {', '.join(STRATEGIES)}, nor the class_path "
            f"of a strategy.{nearest(value, STRATEGIES)}"
        )
    return name


def uses_deepspeed(strategy: str | Strategy) -> bool:
    """Tell whether a strategy, or the name of one, is DeepSpeed's."""
    if isinstance(strategy, str):
        return strategy.startswith("deepspeed")
    return isinstance(strategy, ZeRO)


def check_legal(strategy: str | Strategy, device: str, trainer_config: Mapping[str, Any]) -> None:
    """Refuse what a strategy cannot do, before a process or a GPU is taken.

    Args:
        strategy: of `choose_strategy`.
        device: "cuda", "mps" or "cpu".
        trainer_config: the trainer's options.

    Raises:
        UserInputError: an option that would be ignored, or would fail in mid-run.
    """
    if trainer_config.get("sync_batchnorm") and device != "cuda":
        raise UserInputError(
            f"trainer.sync_batchnorm=true needs GPUs (torch has no SyncBatchNorm for {device}): "
            f"leave it out, and choose data.micro_batch_size as large as the statistics need."
        )
    limit = trainer_config.get("gradient_clip_val")
    algorithm = trainer_config.get("gradient_clip_algorithm")
    if limit is not None and limit < 0:
        raise UserInputError(
            f"trainer.gradient_clip_val={limit} must be above 0; leave it out for no clipping."
        )
    if algorithm is not None and limit is None:
        raise UserInputError(
            f"trainer.gradient_clip_algorithm={algorithm} clips nothing without "
            f"trainer.gradient_clip_val: set that too, or leave both out."
        )
    if uses_deepspeed(strategy) and str(algorithm).lower() == "value":
        raise UserInputError(
            f"trainer.gradient_clip_algorithm={algorithm} is not possible under DeepSpeed, whose "
            f"ranks hold shares of the gradients: use norm, or trainer.strategy=ddp."
        )


def device_type(accelerator: str | Accelerator) -> str:
    """Return the torch device type of `trainer.accelerator`: "cuda", "mps" or "cpu"."""
    if isinstance(accelerator, Accelerator):
        return accelerator.name()
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
        return "cuda" if accelerator == "gpu" else "cpu"
    return accelerator


def settle_buckets(model: TorchDDP) -> None:
    """Let DDP choose for good which gradients lie where in what it reduces; all ranks together.

    torch lays them out anew behind a process's first backward pass. gloo from three ranks on, and
    NCCL's rings, add in an order that depends on an element's place: the first step of a resumed
    process would be summed in another order than the same step of one that was not stopped. So a
    backward pass without a net comes first: zeros, the last layers' first, as in a real one.

    Args:
        model: before its first step. That of a static graph stays as it is: torch learns the graph
            in its first step, and this one would be a lie.
    """
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    if model.static_graph or not parameters:
        return
    with torch.enable_grad():
        model._pre_forward(torch.zeros(1))  # type: ignore[no-untyped-call]
        # Autograd goes back in the order of these sums, the last one first.
        total = torch.zeros((), device=parameters[0].device)
        for parameter in parameters:
            # A product with itself: its gradient lies in memory as the parameter does.
            total = total + (parameter * parameter.detach()).sum()
        model._post_forward(total * 0).backward()  # type: ignore[no-untyped-call]
    for parameter in parameters:
        parameter.grad = None


def _compressing(dtype: torch.dtype) -> Callable[[Any, Any], Future[torch.Tensor]]:
    """Return a DDP hook that averages gradients in another type."""

    def reduce(state: Any, bucket: Any) -> Future[torch.Tensor]:
        buffer: torch.Tensor = bucket.buffer()
        # Divided first: a sum over many ranks could overflow float16.
        halves = buffer.to(dtype).div_(distributed.get_world_size())
        work = distributed.all_reduce(halves, async_op=True)
        assert work is not None

        def take_over(done: Future[Any]) -> torch.Tensor:
            buffer.copy_(done.value()[0])
            return buffer

        future: Future[torch.Tensor] = work.get_future().then(take_over)
        return future

    # torch compares a hook's annotations with its classes, and these are strings here.
    reduce.__annotations__.clear()
    return reduce


def _buffers_option() -> str:
    """Return DDP's name for the broadcast: torch 2.13 renamed it and warns of the old one."""
    known = inspect.signature(TorchDDP.__init__).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
