"""`configs/strategy/*.yaml`: laid over a whole configuration, each gives the strategy it names."""

from pathlib import Path
from typing import Any

import pytest

from resscale.cli_lightning import TrainCli
from resscale.training.strategy import DistributedDataParallel
from resscale.training.zero import ZeRO

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "configs" / "strategy"


def build(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the strategy of the demo with the overlay `name`."""
    monkeypatch.chdir(REPOSITORY)
    overlay = str(FOLDER / f"{name}.yaml")
    cli = TrainCli("fit", ["--config", "configs/demo.yaml", "--config", overlay])
    return cli.parser.instantiate_classes(cli.config).trainer.strategy


def test_every_strategy_has_a_file() -> None:
    ddp = {"ddp", "ddp_static_graph", "ddp_bf16_compressed"}
    zero = {"deepspeed_1", "deepspeed_2", "deepspeed_3", "deepspeed_2_offload"}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == ddp | zero


@pytest.mark.parametrize(
    ("name", "static_graph", "compression"),
    [
        ("ddp", False, None),
        ("ddp_static_graph", True, None),
        ("ddp_bf16_compressed", False, "bf16"),
    ],
)
def test_a_ddp_file_gives_ddp_with_its_options(
    name: str, static_graph: bool, compression: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = build(name, monkeypatch)
    assert isinstance(strategy, DistributedDataParallel)
    assert strategy.gradient_compression == compression
    assert strategy._ddp_kwargs["static_graph"] is static_graph
    assert strategy._ddp_kwargs["gradient_as_bucket_view"] is True


@pytest.mark.parametrize(
    ("name", "stage", "offload"),
    [
        ("deepspeed_1", 1, False),
        ("deepspeed_2", 2, False),
        ("deepspeed_3", 3, False),
        ("deepspeed_2_offload", 2, True),
    ],
)
def test_a_deepspeed_file_gives_its_stage_with_buckets_of_25_mib(
    name: str, stage: int, offload: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")
    strategy = build(name, monkeypatch)
    assert isinstance(strategy, ZeRO)
    zero = strategy.config["zero_optimization"]
    assert zero["stage"] == stage
    assert ("offload_optimizer" in zero) is offload
    assert 4 * zero["reduce_bucket_size"] == 25 * 2**20
    kept = strategy._further_config.get("zero_optimization", {})
    assert (kept == {}) is (stage < 3)
