"""A plan of a run before it is queued: memory, speed, communication, data, hours and cost.

Computed from shapes, published rates and a few constants; no GPU and no data are needed.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from resscale.data.batching import BatchPlan, plan_batches
from resscale.data.order import DEFAULT_WINDOW, EpochOrder, Shuffle
from resscale.models import ResNet, count_macs, create_model
from resscale.models.meta import create_on_meta
from resscale.report.plan_activations import StepMemory, saved_for_backward, step_memory
from resscale.report.plan_data import cpu_ms_per_image, plan_data
from resscale.report.plan_failures import Costs, daly_s, expected_loss, mtbf_s
from resscale.report.plan_gpus import find_link
from resscale.report.plan_memory import MemoryPlan, plan_memory, states_on
from resscale.report.plan_network import build_cluster
from resscale.report.plan_request import Known, Machines, Training
from resscale.report.plan_result import Phase, Plan
from resscale.report.plan_scaling import Cluster, Layer, layers_of
from resscale.report.plan_speed import ImageCost, Rate, tabulated_rate
from resscale.report.plan_step import StepTime, micro_batch_s, step_time
from resscale.report.plan_text import render_plan
from resscale.training.peak_flops import compute_mfu, training_flops

__all__ = ["Plan", "build_plan", "render_plan"]


def build_plan(training: Training, machines: Machines, known: Known | None = None) -> Plan:
    """Return the plan of a run.

    Args:
        training: what is trained.
        machines: where.
        known: what was measured, and the price.

    Raises:
        UserInputError: the batch does not divide, the net does not exist, or the images are too
            small for it.
    """
    known = known or Known()
    batches = plan_batches(
        training.global_batch_size, training.micro_batch_size, machines.num_ranks
    )
    order = EpochOrder(
        training.images.shard_sizes,
        global_batch_size=training.global_batch_size,
        shuffle=cast(Shuffle, training.shuffle),
        window=training.window or DEFAULT_WINDOW,
        partitions=training.partitions,
    )
    net = _net_on_meta(training)
    net.check_size(min(training.sizes), min(training.sizes))
    cluster = build_cluster(
        machines.nodes, machines.gpus_per_node, find_link(machines.link_name), machines.network
    )
    phases = _phases(training, machines, known, net, cluster, batches)
    train_s = sum(phase.epochs * order.num_steps * phase.step.total for phase in phases)
    mean_s = mtbf_s(machines.num_ranks, known.failures_per_gpu_day)
    costs = Costs(known.save_s, known.restart_s)
    save_every = daly_s(known.save_s, mean_s)
    decoder_ms = cpu_ms_per_image(training.decoder, training.images.stored_size)
    return Plan(
        training=training,
        machines=machines,
        known=known,
        num_parameters=sum(p.numel() for p in net.parameters()),
        batches=batches,
        steps_per_epoch=order.num_steps,
        phases=phases,
        memory=_memory(training, machines, net, batches),
        data=plan_data(
            training.images,
            order,
            max(phase.images_per_s for phase in phases),
            machines.nodes,
            machines.gpus_per_node,
            known.loader_images_per_s_per_core or 1000 / decoder_ms,
            is_measured=known.loader_images_per_s_per_core is not None,
        ),
        train_s=train_s,
        eval_s=_evaluation_s(training, machines, net, phases),
        mtbf_s=mean_s,
        save_every_s=save_every,
        lost_share=expected_loss(save_every, costs, mean_s).share,
    )


@dataclass(frozen=True)
class _Net:
    """What names a net: what is computed of it is kept for further plans of this process."""

    model: str
    num_classes: int
    in_channels: int
    options: tuple[tuple[str, Any], ...]

    def build(self) -> nn.Module:
        return create_model(self.model, self.num_classes, self.in_channels, **dict(self.options))


def _net_of(training: Training) -> _Net:
    options = tuple(sorted(training.model_options.items()))
    return _Net(training.model, training.num_classes, training.in_channels, options)


@functools.cache
def _cost(net: _Net, size: int) -> ImageCost:
    on_meta = create_on_meta(net.model, net.num_classes, net.in_channels, **dict(net.options))
    # In 16 bits whatever the precision: published rates are carried over by one measure.
    saved = saved_for_backward(net.build, size, dtype=torch.bfloat16, channels=net.in_channels)
    return ImageCost(count_macs(on_meta, size, net.in_channels), saved.per_image)


@functools.cache
def _step_memory(
    net: _Net, size: int, dtype: torch.dtype | None, gradients_stay: bool
) -> StepMemory:
    return step_memory(
        net.build, size, dtype=dtype, channels=net.in_channels, gradients_stay=gradients_stay
    )


def _net_on_meta(training: Training) -> ResNet:
    return create_on_meta(
        training.model, training.num_classes, training.in_channels, **training.model_options
    )


def _phases(
    training: Training,
    machines: Machines,
    known: Known,
    net: ResNet,
    cluster: Cluster,
    batches: BatchPlan,
) -> tuple[Phase, ...]:
    costs = {size: _cost(_net_of(training), size) for size in set(training.sizes)}
    largest = costs[max(costs)]
    phases = []
    for size, epochs in Counter(training.sizes).items():
        cost = costs[size]
        rate = _rate(training, machines, known, cost, largest)
        layers = layers_of(net, size, training.in_channels)
        step = _step(training, cluster, batches, layers, rate)
        images_per_s = batches.global_batch_size / step.total
        flops = training_flops(cost.macs) * batches.global_batch_size / machines.num_ranks
        mfu = compute_mfu(flops, step.total, machines.gpu.peak_flops_per_s)
        phases.append(Phase(size, epochs, cost.macs, rate, step, images_per_s, mfu))
    return tuple(phases)


def _rate(
    training: Training, machines: Machines, known: Known, cost: ImageCost, largest: ImageCost
) -> Rate:
    if known.images_per_s is None:
        return tabulated_rate(
            training.model, cost, machines.gpu, is_fp32=training.precision == "32-true"
        )
    # Smaller images of a progressive run: by operations and bytes.
    factor = largest.seconds_on(machines.gpu) / cost.seconds_on(machines.gpu)
    source = "given" if cost == largest else "given for the largest images, scaled to these"
    return Rate(known.images_per_s * factor, source, is_measured=True)


def _step(
    training: Training, cluster: Cluster, batches: BatchPlan, layers: list[Layer], rate: Rate
) -> StepTime:
    pass_s, is_host_bound = micro_batch_s(
        sum(layer.macs > 0 for layer in layers),
        batches.micro_batch_size,
        rate.images_per_s,
        is_measured=rate.is_measured,
        is_compiled=training.is_compiled,
    )
    return step_time(
        layers,
        batches.micro_batch_size,
        batches.accumulate,
        cluster,
        pass_s,
        stage=training.stage,
        value_bytes=2 if training.compressed else 4,
        is_host_bound=is_host_bound,
    )


def _memory(training: Training, machines: Machines, net: ResNet, batches: BatchPlan) -> MemoryPlan:
    count = sum(p.numel() for p in net.parameters())
    states = states_on(
        count,
        machines.num_ranks,
        training.stage,
        offload_optimizer=training.offload_optimizer,
        release_gathered=training.release_gathered,
        state_values=training.state_values,
    )
    stay = machines.num_ranks > 1 or batches.accumulate > 1
    step = _step_memory(_net_of(training), max(training.sizes), training.dtype, stay)
    weight_bytes = sum(p.numel() * p.element_size() for p in net.parameters())
    return plan_memory(
        states,
        sum(b.numel() * b.element_size() for b in net.buffers()),
        step,
        batches.micro_batch_size,
        machines.gpu.memory_bytes,
        machines.num_ranks,
        is_averaged=training.is_averaged,
        weight_bytes=weight_bytes,
        # Kernels over lists of tensors add the decay to a copy of the gradients.
        update_bytes=0 if training.is_fused else states.gradients,
        # Stages 1 and 2 fill one bucket while the other is sent.
        bucket_bytes=4 * training.bucket_values * {0: 0, 3: 1}.get(training.stage, 2),
    )


def _evaluation_s(
    training: Training, machines: Machines, net: ResNet, phases: tuple[Phase, ...]
) -> float:
    if not training.num_val:
        return 0.0
    last = max(phases, key=lambda phase: phase.image_size)
    # Forward alone is a third of a training step (backward costs two).
    macs = count_macs(net, training.eval_size, training.in_channels)
    per_image = last.step.compute / _per_rank(training, machines) / 3 * macs / last.macs
    times = math.floor(len(training.sizes) / training.eval_every)
    return times * math.ceil(training.num_val / machines.num_ranks) * per_image


def _per_rank(training: Training, machines: Machines) -> int:
    return training.global_batch_size // machines.num_ranks
