"""Memory of a GPU by part, and the largest micro-batch that fits it. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from resscale.errors import UserInputError
from resscale.report.plan_activations import StepMemory

VALUE_BYTES = 4
"""Parameters, gradients, momentum and ZeRO's copies are float32 in every precision offered."""

GIB = 2**30
MIB = 2**20

# What a GPU's memory holds that is no tensor of ours. Assumed: not yet measured here.
CUDA_CONTEXT_BYTES = 600 * 2**20
"""CUDA's context with the kernels of torch, cuDNN and cuBLAS, and cuBLAS's workspace."""

CUDNN_WORKSPACE_BYTES = 400 * 2**20
"""Of the convolution that wants most."""

NCCL_BYTES = 500 * 2**20
"""Buffers of NCCL's channels, where there are several GPUs."""

FRAGMENTATION = 0.05
"""Share of the memory that the caching allocator holds in pieces that nothing fits into."""


@dataclass(frozen=True)
class States:
    """Bytes that one rank keeps beside activations when a step's last backward begins, the peak.

    With micro-batches accumulated before. Without, ZeRO 1 and 2 have no gradients there yet.
    Left out are the buffers that gradients are reduced in: none of their own under DDP with bucket
    views, `reduce_bucket_size` elements under ZeRO, twice that with `overlap_comm`.
    """

    parameters: int
    gradients: int
    copies: int
    """The float32 shares that ZeRO's optimizer updates, beside the parameters themselves."""

    momentum: int
    """All that the optimizer keeps per parameter."""

    host: int = 0
    """On the CPU's side."""

    @property
    def on_device(self) -> int:
        """Their sum on the GPU."""
        return self.parameters + self.gradients + self.copies + self.momentum


def states_on(
    num_parameters: int,
    num_ranks: int,
    stage: int,
    *,
    offload_optimizer: bool = False,
    release_gathered: bool = False,
    state_values: int = 1,
) -> States:
    """Return what one of `num_ranks` keeps.

    Args:
        num_parameters: learned values of the net.
        num_ranks: ranks that the states are divided among; padding is neglected.
        stage: 0 for a single device and DDP, 1 to 3 for ZeRO.
        offload_optimizer: ZeRO's copies, momentum and its share of gradients lie on the host.
        release_gathered: ZeRO-3 gives a layer's gathered parameters back behind its forward and
            gathers them again for backward. DeepSpeed keeps a net of this size whole instead,
            unless `stage3_max_reuse_distance` and `stage3_prefetch_bucket_size` are 0.
        state_values: values that the optimizer keeps per parameter: 1 for momentum, 2 for Adam's.

    Raises:
        ValueError: no such stage, or no rank.
    """
    if stage not in (0, 1, 2, 3) or num_ranks < 1 or (offload_optimizer and not stage):
        raise ValueError(f"stage {stage} on {num_ranks} ranks, offload {offload_optimizer}")
    whole = VALUE_BYTES * num_parameters
    share = -(-whole // num_ranks)
    if stage == 0:
        return States(whole, whole, 0, state_values * whole)
    gathered = 0 if stage == 3 and release_gathered else whole
    parameters = gathered + (share if stage == 3 else 0)
    gradients = whole if stage == 1 else share
    if not offload_optimizer:
        return States(parameters, gradients, share, state_values * share)
    # The share of gradients moves too, and the host has a buffer that new weights leave through.
    host = (3 + state_values) * share
    return States(parameters, whole if stage == 1 else 0, 0, 0, host=host)


@dataclass(frozen=True)
class Reserve:
    """What is not ours to fill, in bytes: assumed, and so stated with the result."""

    context: int
    workspace: int
    nccl: int
    fragmentation: int

    @property
    def total(self) -> int:
        """Their sum."""
        return self.context + self.workspace + self.nccl + self.fragmentation


def reserve_of(capacity_bytes: int, num_ranks: int) -> Reserve:
    """Return what is kept free on a GPU.

    Args:
        capacity_bytes: memory of the GPU.
        num_ranks: of the run; one alone has no NCCL.
    """
    nccl = NCCL_BYTES if num_ranks > 1 else 0
    fragments = int(FRAGMENTATION * capacity_bytes)
    return Reserve(CUDA_CONTEXT_BYTES, CUDNN_WORKSPACE_BYTES, nccl, fragments)


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on one GPU at the peak of a step, by part.

    Args:
        weights: parameters with BatchNorm's buffers; under ZeRO 3 what is gathered of them.
        gradients: of all parameters, or a share.
        optimizer: momentum and the like, and ZeRO's float32 copies.
        averaged: of `ema.decay`: a second set of weights and buffers.
        buckets: that ZeRO reduces gradients in; DDP's are the gradients themselves.
        activations: kept from forward to backward, with the batch and 16-bit copies of weights.
        work: maps that are in work at the peak; with few images what the update makes.
        reserve: what is kept free.
        capacity: memory of the GPU.
        micro_batch_size: images of a pass.
        largest_micro_batch: images that would fit; 0: not one.
        host: on the CPU's side, per rank.
    """

    weights: int
    gradients: int
    optimizer: int
    averaged: int
    buckets: int
    activations: int
    work: int
    reserve: Reserve
    capacity: int
    micro_batch_size: int
    largest_micro_batch: int
    host: int = 0

    @property
    def tensors(self) -> int:
        """What torch allocates: `torch.cuda.max_memory_allocated`, workspaces left out."""
        states = self.weights + self.gradients + self.optimizer + self.averaged + self.buckets
        return states + self.activations + self.work

    @property
    def total(self) -> int:
        """With what is kept free."""
        return self.tensors + self.reserve.total

    @property
    def fits(self) -> bool:
        """Whether the GPU has that much."""
        return self.total <= self.capacity


def plan_memory(
    states: States,
    buffer_bytes: int,
    step: StepMemory,
    micro_batch_size: int,
    capacity_bytes: int,
    num_ranks: int,
    *,
    is_averaged: bool = False,
    weight_bytes: int = 0,
    bucket_bytes: int = 0,
    update_bytes: int = 0,
) -> MemoryPlan:
    """Return the memory of a GPU by part.

    Args:
        states: of `states_on`.
        buffer_bytes: of BatchNorm's running statistics.
        step: what a step holds beside them.
        micro_batch_size: images of a pass.
        capacity_bytes: memory of the GPU.
        num_ranks: of the run.
        is_averaged: averaged weights are kept too.
        weight_bytes: of one whole set of weights, for the averaged ones.
        bucket_bytes: that ZeRO reduces gradients in.
        update_bytes: that the optimizer's update makes, when activations are gone.

    Raises:
        UserInputError: a micro-batch of no image.
    """
    if micro_batch_size < 1:
        raise UserInputError(f"micro_batch_size={micro_batch_size} must be at least 1.")
    saved = step.saved_bytes(micro_batch_size)
    averaged = weight_bytes + buffer_bytes if is_averaged else 0
    reserve = reserve_of(capacity_bytes, num_ranks)
    fixed = states.on_device + buffer_bytes + averaged + bucket_bytes + reserve.total
    return MemoryPlan(
        weights=states.parameters + buffer_bytes,
        gradients=states.gradients,
        optimizer=states.momentum + states.copies,
        averaged=averaged,
        buckets=bucket_bytes,
        activations=saved,
        work=max(step.work_bytes(micro_batch_size), update_bytes - saved),
        reserve=reserve,
        capacity=capacity_bytes,
        micro_batch_size=micro_batch_size,
        largest_micro_batch=largest_micro_batch(step, capacity_bytes - fixed, update_bytes),
        host=states.host,
    )


def largest_micro_batch(step: StepMemory, free_bytes: int, update_bytes: int = 0) -> int:
    """Return the images of a pass that fit into what states and reserve have left; 0: not one.

    Args:
        step: what a step holds.
        free_bytes: for it.
        update_bytes: that the optimizer's update wants, when activations are gone.
    """

    def fits(count: int) -> bool:
        return step.saved_bytes(count) + step.work_bytes(count) <= free_bytes

    # More images than that do not make the update any larger.
    if update_bytes > free_bytes:
        return 0
    if not fits(1):
        return 0
    high = 2
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def fitting_micro_batches(share: int, largest: int) -> list[int]:
    """Return the micro-batches that divide a rank's share and fit, the largest first.

    Args:
        share: images of a rank in a global batch.
        largest: images that fit.
    """
    return [size for size in range(min(share, largest), 0, -1) if share % size == 0]
