"""What may be asked of DeepSpeed, found wrong before a process starts; and its import."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from typing import Any

import torch

from resscale.errors import UserInputError, nearest

INSTALL = 'pip install -e ".[deepspeed]"'

# Keys of DeepSpeed's configuration that would contradict what the run's own options say.
_SAID_ELSEWHERE = {
    "fp16": "trainer.precision",
    "bf16": "trainer.precision",
    "torch_autocast": "trainer.precision",
    "gradient_clipping": "trainer.gradient_clip_val",
    "gradient_accumulation_steps": "data.micro_batch_size",
    "train_batch_size": "data.global_batch_size",
    "train_micro_batch_size_per_gpu": "data.micro_batch_size",
    "optimizer": "model.optimizer",
    "scheduler": "model.schedule",
}


def check_options(
    stage: int, offload_parameters: bool, reduce_bucket_size: int, config: Mapping[str, Any]
) -> None:
    """Check the options of `ZeRO`, under their names.

    Raises:
        UserInputError: one is out of its range, or contradicts another or the run's own options.
    """
    if stage not in (1, 2, 3):
        raise UserInputError(f"strategy ZeRO: stage={stage} must be 1, 2 or 3.")
    if offload_parameters and stage != 3:
        raise UserInputError(
            f"strategy ZeRO: offload_parameters=true needs stage 3, and stage is {stage}: below it "
            f"every rank uses all weights at each step."
        )
    if reduce_bucket_size < 1:
        raise UserInputError(
            f"strategy ZeRO: reduce_bucket_size={reduce_bucket_size} must be at least 1 element; "
            f"6553600 are 25 MiB."
        )
    for key, option in _SAID_ELSEWHERE.items():
        if key in config:
            raise UserInputError(f"strategy ZeRO: config says {key}; say it by {option}.")
    if "stage" in config.get("zero_optimization", {}):
        raise UserInputError("strategy ZeRO: config says the stage; say it by the option stage.")


def check_zero_section(section: Mapping[str, Any], more: Mapping[str, Any]) -> None:
    """Let DeepSpeed check its `zero_optimization`, with a user's keys laid over ours.

    Raises:
        UserInputError: a key that DeepSpeed does not know, or a value that it does not take.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    whole = copy.deepcopy(dict(section))
    overlay(whole, more)
    try:
        DeepSpeedZeroConfig(**whole)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        # A rule about several keys has no place, and all of the section as its input.
        where = f".{name}={first['input']}" if name else ""
        raise UserInputError(
            f"strategy ZeRO: config.zero_optimization{where}: {first['msg'].rstrip('.')}."
            f"{nearest(name, DeepSpeedZeroConfig.model_fields)}"
        ) from error


def check_config_keys(config: Mapping[str, Any]) -> None:
    """Let DeepSpeed read its configuration, and refuse keys that it never asks for.

    It has no list of them, and passes over what it does not know in silence.

    Args:
        config: the option `config` of `ZeRO`.

    Raises:
        UserInputError: an unknown key at the top, or a value that DeepSpeed does not take.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    asked = _Asked({"train_micro_batch_size_per_gpu": 1, **config})
    try:
        DeepSpeedConfig(asked)
    except (ValueError, AttributeError, TypeError) as error:
        raise UserInputError(
            f"strategy ZeRO: DeepSpeed cannot read config ({' '.join(str(error).split())}); "
            f"correct it."
        ) from error
    for key in config:
        if key not in asked.keys_asked:
            raise UserInputError(
                f"strategy ZeRO: config.{key} is no key that DeepSpeed knows; correct it or leave "
                f"it out.{nearest(key, asked.keys_asked)}"
            )


def check_accelerator(device: str) -> None:
    """Check that the environment names no other device to DeepSpeed than the trainer's.

    Args:
        device: "cuda" or "cpu".

    Raises:
        UserInputError: it does.
    """
    named = os.environ.get("DS_ACCELERATOR", device)
    if named != device:
        raise UserInputError(
            f"trainer.accelerator is {device}, but the environment variable DS_ACCELERATOR is "
            f"{named}: set it to {device}, or unset it."
        )


def import_deepspeed() -> None:
    """Import DeepSpeed for the devices at hand.

    Raises:
        UserInputError: it is not installed.
    """
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


class _Asked(dict[str, Any]):
    """A mapping that remembers which keys it was asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.keys_asked: set[str] = set()

    def __contains__(self, key: object) -> bool:
        self.keys_asked.add(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.keys_asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_asked.add(key)
        return super().get(key, default)

    def keys(self) -> Any:
        # `key in config.keys()` asks too.
        return self


def overlay(base: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Lay nested settings over others, in place."""
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(base.get(name), dict):
            overlay(base[name], value)
        else:
            base[name] = value
