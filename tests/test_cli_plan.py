"""`resscale plan`: a configuration and machines in, a plan out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from resscale.cli_plan import run_plan
from resscale.errors import UserInputError

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
ROOT = Path(__file__).resolve().parents[1]
DEMO = ["--config", str(ROOT / "configs" / "demo.yaml"), "--data.val", "null"]


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    """The plan of the demo on ImageNet-like data that is not at hand, as JSON."""
    assert run_plan([*DEMO, "--data.train", "nowhere", "--json", *words]) == 0
    plain: dict[str, object] = json.loads(capsys.readouterr().out)
    return plain


def test_help_shows_an_example_and_imports_no_torch() -> None:
    code = (
        "import sys; from resscale.cli_plan import run_plan; "
        "code = run_plan(['--help']); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "resscale plan --config configs/imagenet/resnet50.yaml" in done.stdout


def test_options_of_fit_and_of_the_machines_are_followed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = planned(
        capsys,
        *("--gpu", "A100", "--nodes", "2", "--gpus_per_node=4", "--network", "2xib-hdr"),
        *("--data.global_batch_size", "256", "--data.micro_batch_size", "16"),
        *("--trainer.precision", "bf16-mixed", "--ema.decay", "0.99", "--trainer.max_epochs", "3"),
        *("--images-per-s", "5000", "--usd-per-gpu-hour", "2", "--train-images", "25600"),
        *("--trainer.strategy", "deepspeed_2", "--model.optimizer.name", "lars"),
    )
    training, machines = plain["training"], plain["machines"]
    assert isinstance(training, dict)
    assert isinstance(machines, dict)
    assert machines == {
        "gpu": "a100",
        "nodes": 2,
        "gpus_per_node": 4,
        "link": "nvlink3",
        "network": "2 adapters of 200 Gb/s per node",
    }
    assert (training["epochs"], training["images"], training["stage"]) == (3, 25_600, 2)
    assert (training["optimizer"], training["is_averaged"]) == ("lars", True)
    assert plain["steps_per_epoch"] == 100
    assert plain["batches"] == {
        "global_batch_size": 256,
        "micro_batch_size": 16,
        "world_size": 8,
        "accumulate": 2,
    }
    assert plain["cost_usd"] == pytest.approx(2 * plain["gpu_hours"])  # type: ignore[operator]


def test_without_a_manifest_imagenet_is_assumed_and_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_plan([*DEMO, "--data.train", "s3://bucket/train", "--images-per-s", "9"]) == 0
    out = capsys.readouterr().out
    assert "1,281,167 images = 20,018 steps; ImageNet's, assumed" in out  # batches of 64


def test_growing_images_are_planned_by_size(capsys: pytest.CaptureFixture[str]) -> None:
    growing = ["--data.progressive.from_size", "4", "--data.progressive.until_epoch", "5"]
    plain = planned(capsys, *growing, "--data.progressive.multiple", "4")
    phases = plain["phases"]
    assert isinstance(phases, list)
    # Epochs 0 to 2 are nearer to 4 pixels than to 8 of 5 (2.5 would be half way).
    assert [(p["image_size"], p["epochs"]) for p in phases] == [(4, 3), (8, 17)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"resscale plan needs --config"),
        ([*DEMO, "--gpu", "h10"], r"Did you mean 'h100'\?"),
        ([*DEMO, "--gpu-link", "nvlnk4"], r"Did you mean 'nvlink4'\?"),
        ([*DEMO, "--nodes", "2"], r"--nodes 2 needs --network"),
        ([*DEMO, "--nics-per-node", "8"], r"say their rate by --network"),
        ([*DEMO, "--gpus-per-node", "5"], r"not divisible by 5 ranks"),
        ([*DEMO, "--images-per-s", "0"], r"--images-per-s 0 must be above 0"),
        ([*DEMO, "--images-per-s", "fast"], r"invalid float value: 'fast'"),
        ([*DEMO, "--data.global_batchsize", "8"], r"global_batchsize"),
        (["resnet50.yaml"], r"'resnet50.yaml' is no option"),
    ],
)
def test_what_cannot_be_planned_is_told_in_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UserInputError, match=message) as refused:
        run_plan(words)
    assert "\n" not in str(refused.value)


def test_the_data_at_hand_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    # The digits that come with the package.
    assert run_plan([*DEMO, "--gpu", "4090"]) == 0
    assert "1,437 images = 22 steps\n" in capsys.readouterr().out  # of 64
