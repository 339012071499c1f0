"""What a plan is made for: the training, the machines, and what the user knows of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from resscale.errors import UserInputError
from resscale.report.plan_data import CPU_MS, IMAGENET_VAL, Images, imagenet
from resscale.report.plan_gpus import Gpu
from resscale.report.plan_network import Network

_DTYPES = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
# Values that an optimizer keeps per parameter, besides those with momentum as an option.
_STATE_VALUES = {"lamb": 2, "adamw": 2}


@dataclass(frozen=True)
class Training:
    """What is trained.

    Args:
        model: name of a net.
        num_classes: outputs.
        in_channels: channels of an image.
        model_options: further options of `create_model`.
        sizes: pixels per side of the training images, one for each epoch.
        eval_size: of evaluation.
        global_batch_size: samples per optimizer step over all ranks.
        micro_batch_size: samples of a pass; None: the rank's whole share.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        stage: 0 for one device and DDP, 1 to 3 for ZeRO.
        release_gathered: ZeRO 3 gives weights back between forward and backward.
        offload_optimizer: ZeRO keeps the optimizer's state on the host.
        bucket_values: that ZeRO reduces gradients in, twice.
        compressed: DDP sends 16-bit gradients.
        optimizer: name.
        implementation: of the optimizer's kernels, `model.optimizer.implementation`.
        momentum: of SGD and LARS; 0: nothing is kept.
        is_averaged: averaged weights are kept.
        is_compiled: by torch.compile.
        decoder: of images.
        partitions: `data.partitions`.
        window: `data.window`.
        shuffle: `data.shuffle`.
        images: the training images.
        num_val: images of an evaluation, behind each `eval_every` epochs; 0: none.
        eval_every: epochs.
        explain_lr: the learning rate's arithmetic, for people.
    """

    model: str = "resnet50"
    num_classes: int = 1000
    in_channels: int = 3
    model_options: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = (224,) * 90
    eval_size: int = 224
    global_batch_size: int = 256
    micro_batch_size: int | None = None
    precision: str = "bf16-mixed"
    stage: int = 0
    release_gathered: bool = False
    offload_optimizer: bool = False
    bucket_values: int = 6_553_600
    compressed: bool = False
    optimizer: str = "sgd"
    implementation: str = "auto"
    momentum: float = 0.9
    is_averaged: bool = False
    is_compiled: bool = False
    decoder: str = "native"
    partitions: int = 1
    window: int | None = None
    shuffle: str = "window"
    images: Images = field(default_factory=imagenet)
    num_val: int = IMAGENET_VAL
    eval_every: int = 1
    explain_lr: str = ""

    def __post_init__(self) -> None:
        if not self.sizes:
            raise UserInputError("trainer.max_epochs must be at least 1: there is nothing to plan.")
        if self.precision not in _DTYPES:
            raise UserInputError(
                f"trainer.precision={self.precision} is not one of {', '.join(_DTYPES)}."
            )
        if self.decoder not in CPU_MS:
            raise UserInputError(f"data.decoder={self.decoder} is not one of {', '.join(CPU_MS)}.")

    @property
    def dtype(self) -> torch.dtype | None:
        """Of autocast; None: float32."""
        return _DTYPES[self.precision]

    @property
    def is_fused(self) -> bool:
        """Whether the update on a GPU is one kernel that makes no copies."""
        return self.optimizer in ("sgd", "adamw") and self.implementation in ("auto", "fused")

    @property
    def state_values(self) -> int:
        """Values that the optimizer keeps per parameter."""
        return _STATE_VALUES.get(self.optimizer, 1 if self.momentum else 0)


@dataclass(frozen=True)
class Machines:
    """Where it is trained.

    Args:
        gpu: kind of GPU.
        nodes: number of nodes.
        gpus_per_node: GPUs, and so ranks, of each.
        link: between the GPUs of a node, of `plan_gpus.LINKS`; None: the GPU's own.
        network: between nodes; None for a single one.
    """

    gpu: Gpu
    nodes: int = 1
    gpus_per_node: int = 1
    link: str | None = None
    network: Network | None = None

    def __post_init__(self) -> None:
        for option, value in (("nodes", self.nodes), ("gpus-per-node", self.gpus_per_node)):
            if value < 1:
                raise UserInputError(f"--{option} {value} must be at least 1.")

    @property
    def num_ranks(self) -> int:
        """GPUs in all."""
        return self.nodes * self.gpus_per_node

    @property
    def link_name(self) -> str:
        """What links the GPUs of a node."""
        return self.link or self.gpu.link


@dataclass(frozen=True)
class Known:
    """What the user has measured, or pays.

    Args:
        images_per_s: of one GPU by itself at the planned micro-batch and the largest size.
        loader_images_per_s_per_core: that one CPU core reads and decodes.
        usd_per_gpu_hour: price; None: no cost is shown.
        failures_per_gpu_day: see `plan_failures.PUBLISHED`.
        save_s: seconds that training stands still for a checkpoint.
        restart_s: seconds from a failure until training goes on.
    """

    images_per_s: float | None = None
    loader_images_per_s_per_core: float | None = None
    usd_per_gpu_hour: float | None = None
    failures_per_gpu_day: float = 419 / 54 / 16_384
    save_s: float = 2.0
    restart_s: float = 300.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise UserInputError(f"--{name.replace('_', '-')} {value:g} must be above 0.")
