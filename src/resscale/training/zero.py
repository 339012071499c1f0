"""DeepSpeed ZeRO as a strategy like the others: float32 BatchNorm, whole checkpoints, CPUs too.

Lightning's strategy casts BatchNorm, ignores `sync_batchnorm`, writes checkpoints that only the
same number of ranks can read, and refuses machines without a GPU. Here mixed precision is autocast,
and what is saved is what DDP saves.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.seed import reset_seed
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from resscale.errors import UserInputError
from resscale.training.compiling import is_compiled
from resscale.training.lars import Fragment as LarsFragment
from resscale.training.lars import Lars
from resscale.training.launcher import RankLauncher
from resscale.training.loss_scale import install_loss_scaler
from resscale.training.partition import gather_part, is_partitioned, local_part, own_part
from resscale.training.precision import autocast_dtype
from resscale.training.zero_fragments import (
    find_fragments,
    gather_state,
    scatter_state,
    scatter_weights,
)

INSTALL = 'pip install -e ".[deepspeed]"'


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed ZeRO (Rajbhandari et al. 2020) with the same training and checkpoints as DDP.

    Args:
        stage: 1: each rank keeps a share of the optimizer's state; 2: of the gradients too; 3: of
            the weights too.
        offload_optimizer: keep the optimizer's state and step in host memory.
        offload_parameters: keep the shares of the weights in host memory; stage 3.
        reduce_bucket_size: elements of gradients that are reduced together; 25 MiB of float32, as
            DDP has it: DeepSpeed's own 5e8 would send nothing before backward ends.
        config: further keys of DeepSpeed's configuration, laid over ours.
        timeout: of collectives.
        accelerator: set by the trainer.
        parallel_devices: set by the trainer.
        cluster_environment: set by the trainer.
        process_group_backend: "nccl" or "gloo"; None: what suits the devices.

    Raises:
        UserInputError: DeepSpeed is not installed; options that contradict each other.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 1,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        reduce_bucket_size: int = 6_553_600,
        config: dict[str, Any] | None = None,
        timeout: timedelta | None = default_pg_timeout,
        accelerator: Any = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        process_group_backend: str | None = None,
    ) -> None:
        _check_options(stage, offload_parameters)
        _import_deepspeed()
        super().__init__(
            stage=stage,
            # Without DeepSpeed's own CPU optimizer, which is compiled at run time and is Adam.
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            reduce_bucket_size=reduce_bucket_size,
            allgather_bucket_size=reduce_bucket_size,
            logging_level=logging.ERROR,
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        assert isinstance(self.config, dict)
        self.config["zero_force_ds_cpu_optimizer"] = False
        if stage == 3:
            # With DeepSpeed's own settings every gathered weight of a net this small is kept until
            # the step ends, and stage 3 saves no more than stage 2.
            self.config["zero_optimization"]["stage3_max_reuse_distance"] = 0
            self.config["zero_optimization"]["stage3_prefetch_bucket_size"] = 0
        self.stage = stage
        self.offload_optimizer = offload_optimizer
        self._further_config = config or {}
        self._groups: list[list[nn.Parameter]] = []

    @property
    def root_device(self) -> torch.device:
        """The rank's device; a CPU has the index that DeepSpeed's engine compares with."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = RankLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    def setup_environment(self) -> None:
        """Set up the ranks, on CPUs too."""
        from deepspeed.accelerator import get_accelerator

        wanted, found = super().root_device.type, get_accelerator().device_name()
        if wanted != found:
            raise UserInputError(
                f"trainer.accelerator is {wanted}, but DeepSpeed was loaded for {found}: set the "
                f"environment variable DS_ACCELERATOR={wanted}."
            )
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Join the ranks' process group."""
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def setup(self, trainer: Trainer) -> None:
        """Prepare the module; where it is only evaluated, every rank has it whole."""
        assert self.model is not None
        if self._layer_sync is not None and trainer.state.fn == TrainerFn.FITTING:
            self.model = self._layer_sync.apply(self.model)
        # ZeRO lays weights flat, so they cannot be in another memory format; activations still are.
        self.model = self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if trainer.state.fn == TrainerFn.FITTING:
            super().setup(trainer)
            return
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        self.setup_precision_plugin()
        self.barrier()

    def _format_config(self) -> None:
        """Complete DeepSpeed's configuration with what the trainer says."""
        assert isinstance(self.config, dict)
        self._format_batch_size_and_grad_accum_config()
        zero = self.config["zero_optimization"]
        dtype = autocast_dtype(self.precision_plugin.precision)
        if dtype is not None:
            name = "bfloat16" if dtype == torch.bfloat16 else "float16"
            self.config["torch_autocast"] = {
                "enabled": True,
                "dtype": name,
                # Gradients are reduced in float32, as DDP reduces them.
                "lower_precision_safe_modules": [],
            }
        clipped = bool(self.config["gradient_clipping"])
        if self.stage < 3 and not (clipped or self.offload_optimizer or dtype == torch.float16):
            # The norm is read off the device at each step; nobody asks for it here.
            zero["compute_grad_norm"] = False
        if self.stage < 3 and is_compiled(self.lightning_module):
            # A compiled backward pass gives its gradients at once, and DeepSpeed 0.19.8 then
            # overwrites some before they are reduced (seen: no error, wrong weights).
            zero["overlap_comm"] = False
        _overlay(self.config, self._further_config)

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        assert optimizer is not None
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        engine, zero_optimizer = super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        if autocast_dtype(self.precision_plugin.precision) == torch.float16:
            install_loss_scaler(zero_optimizer)
        if isinstance(optimizer, Lars):
            _tell_layers(optimizer, zero_optimizer, self._groups, self.root_device)
        return engine, zero_optimizer

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the whole weights and buffers, as every other strategy does; all ranks call it."""
        module = self.lightning_module
        assert module is not None
        state = {name: value.detach() for name, value in module.state_dict().items()}
        for name, parameter in module.named_parameters():
            if is_partitioned(parameter):
                state[name] = gather_part(local_part(parameter), parameter)
        return state

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take over whole weights and buffers, into the shares and into the optimizer's copies."""
        module = self.lightning_module
        assert module is not None
        state = dict(checkpoint["state_dict"])
        partitioned = {
            name: parameter
            for name, parameter in module.named_parameters()
            if is_partitioned(parameter)
        }
        if not partitioned:
            module.load_state_dict(state, strict=strict)
        else:
            _load_buffers(module, state)
            for name, parameter in partitioned.items():
                _load_partitioned(parameter, state[name])
        if self._is_training:
            scatter_weights(
                _in_order(module, self._groups, state), find_fragments(self._zero, self._groups)
            )

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Tensor]:
        """Return the whole state in torch's own form; all ranks call it."""
        fragments = find_fragments(self._zero, self._groups)
        return gather_state(self._zero.optimizer, self._groups, fragments)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over a state in torch's own form."""
        fragments = find_fragments(self._zero, self._groups)
        scatter_state(self._zero.optimizer, checkpoint["optimizer_states"][0], fragments)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None
    ) -> None:
        """Write one file, on rank 0, through the trainer's checkpoint writer."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(
        self, checkpoint_path: _PATH, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read one file on every rank, never executing anything in it."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only=True)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer's state is restored by `load_optimizer_state_dict`."""
        return True

    @property
    def _is_training(self) -> bool:
        return bool(self._groups)

    @property
    def _zero(self) -> Any:
        """DeepSpeed's optimizer."""
        return self.deepspeed_engine.optimizer


def _check_options(stage: int, offload_parameters: bool) -> None:
    if stage not in (1, 2, 3):
        raise UserInputError(f"strategy ZeRO: stage={stage} must be 1, 2 or 3.")
    if offload_parameters and stage != 3:
        raise UserInputError(
            f"strategy ZeRO: offload_parameters=true needs stage 3, and stage is {stage}: below it "
            f"every rank uses all weights at each step."
        )


def _import_deepspeed() -> None:
    """Import DeepSpeed for the devices at hand."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # It logs each of its settings, at import too.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        import deepspeed
    except ImportError as error:
        raise UserInputError(
            f"the strategy needs DeepSpeed, which is not installed ({error}): {INSTALL}"
        ) from error
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        # Its shared-memory collectives are compiled at first use, in minutes, with a compiler that
        # the machine may not have; gloo serves.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _tell_layers(
    optimizer: Lars, zero_optimizer: Any, groups: list[list[nn.Parameter]], device: torch.device
) -> None:
    """Tell LARS which layers its flat tensors hold; `device` is the rank's."""
    # Stage 3 hands the optimizer its tensors one by one, at each step; before, it has none.
    flats = (
        zero_optimizer.fp32_partitioned_groups_flat
        if hasattr(zero_optimizer, "fp32_partitioned_groups_flat")
        else zero_optimizer.single_partition_of_fp32_groups
    )
    layout: dict[Tensor, list[LarsFragment]] = {flat: [] for flat in flats}
    for fragment in find_fragments(zero_optimizer, groups):
        layout[fragment.flat].append(
            LarsFragment(fragment.flat_start, fragment.length, fragment.parameter)
        )
    num_layers = sum(len(group) for group in groups)
    optimizer.set_fragments(layout, num_layers, partial(_add_up, device=device))


def _add_up(vector: Tensor, device: torch.device) -> None:
    """Add a vector up over the ranks, in place, by way of a device that their backend reaches."""
    # An offloaded optimizer computes on the host, and nccl knows no host tensors.
    if vector.device.type == device.type:
        distributed.all_reduce(vector)
        return
    there = vector.to(device)
    distributed.all_reduce(there)
    vector.copy_(there)


def _load_buffers(module: LightningModule, state: Mapping[str, Tensor]) -> None:
    persistent = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers():
        if name in persistent:
            buffer.data.copy_(state[name])


def _load_partitioned(parameter: nn.Parameter, whole: Tensor) -> None:
    local_part(parameter).copy_(own_part(whole, parameter))
    # Small parameters stay whole on every rank between steps; `shape` tells.
    if parameter.numel() == whole.numel() and parameter.data.shape == whole.shape:
        parameter.data.copy_(whole)


def _in_order(
    module: LightningModule, groups: list[list[nn.Parameter]], state: Mapping[str, Tensor]
) -> list[Tensor]:
    """Return the whole weights in the order of the optimizer's groups."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [state[names[parameter]] for group in groups for parameter in group]


def _overlay(base: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Lay nested settings over others, in place."""
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(base.get(name), dict):
            _overlay(base[name], value)
        else:
            base[name] = value
