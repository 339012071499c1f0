"""A plan as text for people, and as plain values for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from resscale.report.plan_data import IMAGENET_TRAIN
from resscale.report.plan_failures import interval_text
from resscale.report.plan_gpus import LINKS
from resscale.report.plan_memory import GIB, MIB, fitting_micro_batches
from resscale.report.plan_result import Phase, Plan

_STRATEGIES = {0: "ddp", 1: "ZeRO 1", 2: "ZeRO 2", 3: "ZeRO 3"}
_WIDTH = 22


def render_plan(plan: Plan) -> str:
    """Return a plan for people: a block per question, and what is assumed."""
    blocks = (_what(plan), _memory(plan), _speed(plan), _data(plan), _time(plan))
    return "\n\n".join("\n".join(block) for block in blocks)


def _row(name: str, text: str) -> str:
    return f"{name:<{_WIDTH}} {text}"


def _what(plan: Plan) -> list[str]:
    training, machines, largest = plan.training, plan.machines, plan.largest
    images = training.images
    gpu = machines.gpu
    where = f"{machines.nodes} node{'s' * (machines.nodes > 1)} of {machines.gpus_per_node} "
    where += f"{gpu.title} ({gpu.memory_bytes / 1e9:.0f} GB)"
    if machines.gpus_per_node > 1:
        where += f", {machines.link_name} {LINKS[machines.link_name] / 1e9:g} GB/s each way"
    if machines.network is not None and machines.nodes > 1:
        where += f", {machines.network}"
    what = f"{training.model} at {largest.image_size} pixels: {plan.num_parameters / 1e6:.2f}M "
    assumed = ""
    if images.is_assumed:
        whose = "ImageNet's" if images.count == IMAGENET_TRAIN else "as large as ImageNet's"
        assumed = f"; {whose}, assumed: no manifest is at hand"
    epochs = len(training.sizes)
    return [
        what + f"parameters, {largest.macs / 1e9:.3g} GMACs per image",
        _row("machines", where),
        _row("batch", f"{plan.batches}" + (f"; {training.explain_lr}" * bool(training.explain_lr))),
        _row(
            "epochs",
            f"{epochs} of {images.count:,} images = {plan.steps_per_epoch:,} steps{assumed}",
        ),
    ]


def _memory(plan: Plan) -> list[str]:
    memory, training = plan.memory, plan.training
    reserve = memory.reserve
    # Small nets on small images would be a column of zeros.
    unit, size_of_unit = ("GiB", GIB) if memory.tensors >= GIB else ("MiB", MIB)
    strategy = _STRATEGIES[training.stage] if plan.machines.num_ranks > 1 else "one GPU"
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "averaged weights": memory.averaged,
        "reduce buckets": memory.buckets,
        "activations": memory.activations,
        "maps in work": memory.work,
        "CUDA context": reserve.context,
        "cuDNN workspace": reserve.workspace,
        "NCCL": reserve.nccl,
        "fragments": reserve.fragmentation,
    }
    assumed = {"CUDA context", "cuDNN workspace", "NCCL", "fragments"}
    lines = [
        f"memory per GPU, {unit}: {memory.micro_batch_size} images of {plan.largest.image_size} "
        f"pixels a pass, {training.precision}, {strategy}"
    ]
    for name, size in parts.items():
        if size:
            note = "   assumed" if name in assumed else ""
            lines.append(_row(f"  {name}", f"{size / size_of_unit:8.2f}{note}"))
    verdict = "" if memory.fits else "   DOES NOT FIT"
    total = f"{memory.total / size_of_unit:8.2f} of {memory.capacity / size_of_unit:,.2f}{verdict}"
    lines.append(_row("  total", total))
    if memory.host:
        lines.append(_row("  on the host", f"{memory.host / size_of_unit:8.2f} per rank"))
    return [*lines, _row("largest micro-batch", _largest(plan))]


def _largest(plan: Plan) -> str:
    largest = plan.memory.largest_micro_batch
    share = plan.training.global_batch_size // plan.machines.num_ranks
    if not largest:
        return "not one image fits"
    fitting = fitting_micro_batches(share, largest)[:3]
    return f"{largest:,} images; of a rank's {share:,}: {', '.join(map(str, fitting))}"


def _speed(plan: Plan) -> list[str]:
    machines = plan.machines
    lines = ["speed"]
    for phase in plan.phases:
        size = f"  {phase.image_size} pixels"
        of = "measured by you" if phase.rate.is_measured else "tabulated, not measured here"
        lines.append(_row(size, f"{phase.rate.images_per_s:,.0f} images/s on one GPU, {of}"))
        if len(plan.phases) == 1 or phase is plan.largest:
            lines.append(_row("", phase.rate.source))
        lines.append(_row("", _step_line(phase)))
        if machines.num_ranks > 1:
            lines.append(_row("", _wire_line(phase)))
        together = f"{phase.images_per_s:,.0f} images/s on {machines.num_ranks} GPUs"
        if machines.num_ranks == 1:
            together = f"{phase.images_per_s:,.0f} images/s in these passes"
        lines.append(_row("", f"{together}, {phase.mfu:.1%} of the peak (MFU)"))
    if any(phase.step.is_host_bound for phase in plan.phases):
        lines.append(
            "note: passes this small leave the GPU waiting for the host, which launches kernels "
            "one by one:\n      a larger data.micro_batch_size, model.compile or CUDA graphs would "
            "mend it"
        )
    return lines


def _step_line(phase: Phase) -> str:
    step = phase.step
    return f"step {step.total * 1e3:,.1f} ms: compute {step.compute * 1e3:,.1f}" + (
        f", slowest rank {(step.slowest - step.compute) * 1e3:+,.1f}, "
        f"sending not hidden {step.exposed * 1e3:+,.1f}"
        if step.total > step.compute
        else ""
    )


def _wire_line(phase: Phase) -> str:
    step = phase.step
    return f"all-reduce {step.all_reduce * 1e3:,.1f} ms, scaling efficiency {step.efficiency:.0%}"


def _data(plan: Plan) -> list[str]:
    data, training, nodes = plan.data, plan.training, plan.machines.nodes
    origin = "measured by you" if data.is_measured else "docs/data.md, another machine"
    bound = f"{data.images_per_s_per_core:,.0f} images/s per core with {training.decoder}, {origin}"
    lines = [
        "data",
        _row("  CPU cores", f"{data.cores_per_node} per node, {data.cores_per_gpu:.1f} per GPU"),
        _row("", bound),
        _row(
            "  storage",
            f"{data.bytes_per_s / 1e6:,.0f} MB/s in all, {data.node_bytes_per_s / 1e6:,.0f} MB/s "
            f"per node: {data.bytes_per_image / 1e3:.1f} kB per image",
        ),
        _row(
            "  from a server",
            f"{data.epoch_bytes / 1e9:,.1f} GB per node in the first epoch "
            f"({data.times_read:.2f} × the data set over {nodes} "
            f"node{'s' * (nodes > 1)}); a cache of {data.cache_bytes / 1e9:,.1f} GB per node "
            f"reads nothing twice",
        ),
    ]
    if data.suggested_cache_bytes < 0.9 * data.cache_bytes:
        lines.append(
            _row(
                "",
                f"with data.partitions={data.suggested_partitions} (now {data.partitions}) "
                f"{data.suggested_cache_bytes / 1e9:,.1f} GB",
            )
        )
    return lines


def _time(plan: Plan) -> list[str]:
    known = plan.known
    train, evaluate = plan.train_s / 3600, plan.eval_s / 3600
    lines = [
        "time",
        _row(
            "  hours",
            f"{plan.hours:,.3g}: training {train:,.3g}, evaluation {evaluate:,.2g}, "
            f"saves and failures {plan.hours - train - evaluate:,.2g}",
        ),
        _row("  GPU-hours", f"{plan.gpu_hours:,.3g}"),
    ]
    if plan.cost_usd is not None:
        price = f"at {known.usd_per_gpu_hour:g} USD per GPU-hour"
        lines.append(_row("  cost", f"{plan.cost_usd:,.2f} USD {price}"))
    lines.append(_row("  checkpoints", _checkpoints(plan)))
    return lines


def _checkpoints(plan: Plan) -> str:
    step_s = plan.train_s / (plan.steps_per_epoch * len(plan.training.sizes))
    rare = f"a failure each {interval_text(plan.mtbf_s)}"
    if plan.save_every_s > plan.hours * 3600:
        return f"{rare}: the run is shorter than the best interval; one per epoch is plenty"
    steps = max(1, round(plan.save_every_s / step_s))
    return (
        f"each {interval_text(plan.save_every_s)}, {steps:,} steps "
        f"(checkpoint.every_n_steps): {rare}"
    )


def plain_plan(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values, for JSON: every number of it, units in the names."""
    training = plan.training
    images = training.images
    plain_training = {
        name: value for name, value in vars(training).items() if name not in ("images", "sizes")
    }
    return {
        "training": {
            **plain_training,
            "epochs": len(training.sizes),
            "images": images.count,
            "images_assumed": images.is_assumed,
        },
        "machines": {
            "gpu": plan.machines.gpu.name,
            "nodes": plan.machines.nodes,
            "gpus_per_node": plan.machines.gpus_per_node,
            "link": plan.machines.link_name,
            "network": None if plan.machines.network is None else str(plan.machines.network),
        },
        "num_parameters": plan.num_parameters,
        "batches": asdict(plan.batches),
        "steps_per_epoch": plan.steps_per_epoch,
        "phases": [
            {**asdict(phase), "efficiency": phase.step.efficiency, "step_s": phase.step.total}
            for phase in plan.phases
        ],
        "memory_bytes": {
            **asdict(plan.memory),
            "tensors": plan.memory.tensors,
            "total": plan.memory.total,
            "fits": plan.memory.fits,
        },
        "data": asdict(plan.data),
        "hours": plan.hours,
        "gpu_hours": plan.gpu_hours,
        "cost_usd": plan.cost_usd,
        "train_s": plan.train_s,
        "eval_s": plan.eval_s,
        "mtbf_s": plan.mtbf_s,
        "save_every_s": plan.save_every_s,
        "lost_share": plan.lost_share,
    }
