"""Strategies by name, the options that legal ones get, and what is refused with its reason."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry

from resscale.cli_lightning import TrainCli
from resscale.errors import UserInputError
from resscale.training import strategy
from resscale.training.launcher import RankLauncher
from resscale.training.strategy import (
    STRATEGIES,
    DistributedDataParallel,
    check_legal,
    choose_strategy,
    device_type,
    register_strategies,
    uses_deepspeed,
)
from resscale.training.zero import ZeRO

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
OURS = "resscale.training.strategy.DistributedDataParallel"


def parse(repository: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Any:
    """Return the trainer's options as the command line's own parser gives them."""
    monkeypatch.chdir(repository)
    cli = TrainCli("fit", ["--config", "configs/demo.yaml", *options])
    return cli.parser.instantiate_classes(cli.config).trainer


def test_ddp_means_ours() -> None:
    register_strategies()
    assert StrategyRegistry.get("ddp").__class__ is DistributedDataParallel


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_means_ours_at_its_stage(stage: int) -> None:
    pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")
    register_strategies()
    found = StrategyRegistry.get(f"deepspeed_{stage}")
    assert (type(found), found.stage) == (ZeRO, stage)


@pytest.mark.parametrize(
    ("devices", "expected"), [(1, SingleDeviceStrategy), (2, DistributedDataParallel)]
)
def test_auto_is_one_device_or_our_ddp(devices: int, expected: type) -> None:
    register_strategies()
    trainer = Trainer(
        strategy="auto",
        accelerator="cpu",
        devices=devices,
        logger=False,
        enable_checkpointing=False,
    )
    assert type(trainer.strategy) is expected


@pytest.mark.parametrize(
    ("value", "name"),
    [
        *((name, name) for name in STRATEGIES),
        ("deepspeed", "deepspeed_2"),
        ("deepspeed_stage_1", "deepspeed_1"),
        ("deepspeed_stage_2", "deepspeed_2"),
        ("deepspeed_stage_3", "deepspeed_3"),
    ],
)
def test_strategies_have_names_and_those_that_lightning_gave_them(value: str, name: str) -> None:
    assert choose_strategy(value) == name
    assert uses_deepspeed(name) is name.startswith("deepspeed")


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("dpd", "Did you mean 'ddp'"),
        ("deepspeed-2", "Did you mean 'deepspeed_2'"),
        ("deepspeed_4", "Did you mean 'deepspeed_"),
        ("fsdp", "auto, ddp, deepspeed_1, deepspeed_2, deepspeed_3"),
        ("ddp_spawn", "auto, ddp, deepspeed_1"),
        (OURS, "name it by trainer.strategy.class_path"),
    ],
)
def test_another_name_is_refused_with_those_there_are(value: str, hint: str) -> None:
    with pytest.raises(UserInputError, match=f"trainer.strategy={value} ") as refused:
        choose_strategy(value)
    assert hint in str(refused.value)


def test_a_strategy_object_is_taken_if_it_is_ours() -> None:
    for ours in (DistributedDataParallel(), SingleDeviceStrategy("cpu")):
        assert choose_strategy(ours) is ours
        assert not uses_deepspeed(ours)
    with pytest.raises(
        UserInputError, match=r"ddp\.DDPStrategy would not keep BatchNorm"
    ) as refused:
        choose_strategy(DDPStrategy())
    assert OURS in str(refused.value)


class DdpOfTorch212:
    def __init__(self, module: Any, broadcast_buffers: bool = True) -> None: ...


class DdpOfTorch213:
    def __init__(self, module: Any, forward_sync_buffers: bool = True) -> None: ...


@pytest.mark.parametrize(
    ("torchs_own", "name"),
    [(DdpOfTorch212, "broadcast_buffers"), (DdpOfTorch213, "forward_sync_buffers")],
)
def test_ddp_keeps_each_ranks_buffers_by_whichever_name_torch_knows(
    monkeypatch: pytest.MonkeyPatch, torchs_own: type, name: str
) -> None:
    monkeypatch.setattr(strategy, "TorchDDP", torchs_own)
    expected = {name: False, "gradient_as_bucket_view": True, "static_graph": False}
    assert DistributedDataParallel()._ddp_kwargs == expected


def test_ddp_takes_only_options_that_this_torch_knows() -> None:
    known = inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters
    options = DistributedDataParallel()._ddp_kwargs
    assert set(options) <= set(known)
    buffers = [name for name in options if name.endswith("_buffers")]
    assert [options[name] for name in buffers] == [False]
    assert DistributedDataParallel(**{buffers[0]: True})._ddp_kwargs[buffers[0]]


def test_a_class_path_with_options_keeps_our_other_defaults(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"static_graph": "true", "gradient_compression": "fp16", "bucket_cap_mb": "5"}
    arguments = [f"--trainer.strategy.init_args.{key}={value}" for key, value in options.items()]
    found = parse(
        repository, monkeypatch, f"--trainer.strategy.class_path={OURS}", *arguments
    ).strategy
    assert type(found) is DistributedDataParallel
    assert found.gradient_compression == "fp16"
    given = found._ddp_kwargs
    assert (given["static_graph"], given["bucket_cap_mb"]) == (True, 5)
    assert given["gradient_as_bucket_view"] is True
    # The parser names every option of torch's, with None for those that nobody set.
    assert given[strategy._buffers_option()] is False
    assert not given["find_unused_parameters"]


def test_an_unknown_compression_is_refused(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"--trainer.strategy.class_path={OURS}"
    option = "--trainer.strategy.init_args.gradient_compression=int8"
    with pytest.raises(UserInputError, match=r"gradient_compression.*must be one of bf16, fp16"):
        parse(repository, monkeypatch, path, option)


def test_ddp_launches_its_ranks_with_our_launcher() -> None:
    ddp = DistributedDataParallel(
        cluster_environment=LightningEnvironment(), parallel_devices=[torch.device("cpu")] * 2
    )
    ddp._configure_launcher()
    assert isinstance(ddp.launcher, RankLauncher)
    assert ddp.launcher.num_processes == 2


@pytest.mark.parametrize("name", STRATEGIES)
def test_what_every_strategy_can_do_is_let_through(name: str) -> None:
    check_legal(name, "cpu", {"sync_batchnorm": False, "gradient_clip_val": None})
    check_legal(name, "cuda", {"sync_batchnorm": True, "gradient_clip_val": 0.0})
    clipped = {"gradient_clip_val": 1, "gradient_clip_algorithm": "norm"}
    check_legal(name, "cuda", clipped)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_synchronised_batchnorm_without_gpus_is_refused(name: str, device: str) -> None:
    with pytest.raises(UserInputError, match=f"torch has no SyncBatchNorm for {device}"):
        check_legal(name, device, {"sync_batchnorm": True})


@pytest.mark.parametrize("algorithm", ["value", "VALUE"])
def test_clipping_by_value_is_refused_under_deepspeed_alone(algorithm: str) -> None:
    options = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": algorithm}
    for name in ("auto", "ddp"):
        check_legal(name, "cpu", options)
    for name in ("deepspeed_1", "deepspeed_2", "deepspeed_3"):
        with pytest.raises(UserInputError, match="shares of the gradients: use norm"):
            check_legal(name, "cpu", options)


def test_clipping_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"clips nothing without trainer\.gradient_clip_val"):
        check_legal("ddp", "cpu", {"gradient_clip_algorithm": "norm"})
    with pytest.raises(UserInputError, match=r"gradient_clip_val=-0\.5 must be above 0"):
        check_legal("deepspeed_1", "cpu", {"gradient_clip_val": -0.5})


def test_the_kind_of_device_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"cuda": False, "mps": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: found["mps"])
    assert (device_type("auto"), device_type("cpu"), device_type("cuda")) == ("cpu", "cpu", "cuda")
    # Not there: the trainer says so, in the words for GPUs.
    assert device_type("gpu") == "cuda"
    found["mps"] = True
    assert (device_type("auto"), device_type("gpu")) == ("mps", "mps")
    found["cuda"] = True
    assert (device_type("auto"), device_type("gpu"), device_type("cpu")) == ("cuda", "cuda", "cpu")
    assert device_type(CPUAccelerator()) == "cpu"
