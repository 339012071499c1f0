"""DeepSpeed ZeRO as a strategy like the others: float32 BatchNorm, whole checkpoints, CPUs too.

Lightning's strategy casts BatchNorm, ignores `sync_batchnorm`, writes checkpoints that only the
same number of ranks can read, and refuses machines without a GPU. Here mixed precision is autocast,
and what is saved is what DDP saves.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.utilities.seed import reset_seed
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, distributed, nn
from torch.distributed.constants import default_pg_timeout
from torch.optim import Optimizer

from resscale.errors import UserInputError
from resscale.training.launcher import RankLauncher
from resscale.training.layerwise import Fragment as LayerFragment
from resscale.training.layerwise import LayerwiseOptimizer
from resscale.training.loss_scale import install_loss_scaler
from resscale.training.partition import gather_part, is_partitioned, local_part
from resscale.training.precision import autocast_dtype
from resscale.training.zero_fragments import (
    find_fragments,
    gather_state,
    scatter_state,
)
from resscale.training.zero_options import (
    check_config_keys,
    check_options,
    check_zero_section,
    import_deepspeed,
    overlay,
)


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
        check_options(stage, offload_parameters, reduce_bucket_size, config or {})
        import_deepspeed()
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
        more = self._further_config.get("zero_optimization", {})
        check_zero_section(self.config["zero_optimization"], more)
        check_config_keys(self._further_config)
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
        overlay(self.config, self._further_config)

    def _setup_model_and_optimizer(
        self, model: nn.Module, optimizer: Optimizer | None, lr_scheduler: Any = None
    ) -> tuple[Any, Any]:
        assert optimizer is not None
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        engine, zero_optimizer = super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        if autocast_dtype(self.precision_plugin.precision) == torch.float16:
            install_loss_scaler(zero_optimizer)
        if isinstance(optimizer, LayerwiseOptimizer):
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
        """Take over whole weights and buffers, before set-up shares them out."""
        Strategy.load_model_state_dict(self, checkpoint, strict)

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
    def restore_checkpoint_after_setup(self) -> bool:
        """Restored before, as under every other strategy.

        Set-up builds the optimizer, and for its schedule the loader, which must begin behind the
        samples that the checkpoint has seen.
        """
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The optimizer's state is restored by `load_optimizer_state_dict`."""
        return True

    @property
    def _zero(self) -> Any:
        """DeepSpeed's optimizer."""
        return self.deepspeed_engine.optimizer


def _tell_layers(
    optimizer: LayerwiseOptimizer,
    zero_optimizer: Any,
    groups: list[list[nn.Parameter]],
    device: torch.device,
) -> None:
    """Tell LARS or LAMB which layers its flat tensors hold; `device` is the rank's."""
    # Stage 3 hands the optimizer its tensors one by one, at each step; before, it has none.
    flats = (
        zero_optimizer.fp32_partitioned_groups_flat
        if hasattr(zero_optimizer, "fp32_partitioned_groups_flat")
        else zero_optimizer.single_partition_of_fp32_groups
    )
    layout: dict[Tensor, list[LayerFragment]] = {flat: [] for flat in flats}
    for fragment in find_fragments(zero_optimizer, groups):
        layout[fragment.flat].append(
            LayerFragment(fragment.flat_start, fragment.length, fragment.parameter)
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
