"""`resscale bench`: real measurements of this machine, tiny; a table, or JSON."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from resscale.bench.turns import PARTS
from resscale.cli_bench import bench_parser, run_bench
from resscale.errors import UserInputError

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
CONFIG: dict[str, Any] = {
    "model": {"model": "resnet8_cifar", "num_classes": 10, "mean": [0.3053], "std": [0.3762]},
    "data": {
        "train": "builtin:digits/train",
        "channels": 1,
        "image_size": 8,
        "train_crop": "center",
        "global_batch_size": 512,
        "num_workers": 1,
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 30},
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    return str(file)


def measured(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a call tells as JSON."""
    assert run_bench([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_step_is_measured_without_data(
    config: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gone = str(tmp_path / "no-such-shards")
    options = ("--rounds", "2", "--steps", "1", "--data.train", gone)
    found = measured(capsys, "step", "--config", config, *options)
    assert found["rows"] == 16  # a CPU's most
    assert found["rounds"] == 2
    seconds = found["seconds"]
    assert all(seconds[part] > 0 for part in PARTS)
    # Parts that lie behind each other are the plain step.
    assert sum(seconds[part] for part in PARTS) == pytest.approx(seconds["step"], rel=0.5)
    assert set(found["floors"]) == {"forward", "backward", "optimizer"}
    assert found["floors"]["backward"]["seconds"] == 2 * found["floors"]["forward"]["seconds"]
    assert found["images_per_s"] == pytest.approx(16 / seconds["fit"])
    assert 0 < found["mfu"] < 1
    assert found["memory_bytes"] > 1 << 20
    assert not (tmp_path / "runs").exists()
    assert "RESSCALE_RUN_DIR" not in os.environ


def test_the_batch_and_options_of_fit_are_the_users(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--batch_size", "24", "--trainer.precision", "bf16-mixed")
    options += ("--model.compile", "eager", "--rounds", "1", "--steps", "1")
    assert run_bench(["step", "--config", config, *options]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("resnet8_cifar, 8x8, 24 images a step, bf16-mixed, eager; ")
    assert [line.split("  ")[0] for line in rest[2:8]] == [*PARTS, "framework", "whole step"]
    assert any("in bfloat16" in line for line in rest)


def test_a_loader_is_measured_by_readers(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--rounds", "1", "--seconds", "0.01", "--readers", "1", "0")
    found = measured(capsys, "loader", "--config", config, *options)
    assert found["rows"] == 512  # as configured
    assert [rate["readers"] for rate in found["readers"]] == [0, 1]
    assert all(rate["images_per_s"] > 0 for rate in found["readers"])
    assert all(rate["cpu_ms_per_image"] > 0 for rate in found["readers"])


def test_training_is_measured_beside_its_two_halves(
    config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--rounds", "1", "--seconds", "0.05", "--batch_size", "64")
    found = measured(capsys, "train", "--config", config, *options)
    assert found["readers"] == 1
    for rate in ("loader", "step", "both"):
        assert found[rate] > 0
    assert 0 <= found["data_wait"] < 1
    assert found["verdict"].startswith(("Bound by", "Loader and step"))


def test_numbers_that_measure_nothing_are_refused(config: str) -> None:
    with pytest.raises(UserInputError, match=r"name one, as --config configs/demo.yaml"):
        run_bench(["step"])
    with pytest.raises(UserInputError, match=r"--rounds 0 must be at least 1"):
        run_bench(["step", "--config", config, "--rounds", "0"])
    with pytest.raises(UserInputError, match=r"--seconds 0 must be above 0"):
        run_bench(["step", "--config", config, "--seconds", "0"])
    with pytest.raises(UserInputError, match=r"--readers -1 must be 0"):
        run_bench(["loader", "--config", config, "--readers", "-1"])
    with pytest.raises(UserInputError, match=r"invalid choice: 'stepp'"):
        run_bench(["stepp", "--config", config])


def test_the_help_shows_examples() -> None:
    text = bench_parser().format_help()
    assert "resscale bench step --config configs/demo.yaml" in text
