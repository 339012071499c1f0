"""Layer responses of real runs, measured and drawn by `resscale report --layer_responses`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from resscale.cli import main
from resscale.cli_responses import measure_responses
from resscale.errors import UserInputError
from resscale.models import create_model
from resscale.report.layer_responses import layer_responses
from resscale.training.rundir import RunDir

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
CONFIG: dict[str, Any] = {
    "model": {"model": "resnet8_cifar", "num_classes": 10, "mean": [0.3053], "std": [0.3762]},
    "data": {
        "train": "builtin:digits/train",
        "val": "builtin:digits/test",
        "channels": 1,
        "image_size": 8,
        "train_crop": "center",
        "global_batch_size": 64,
        "eval_batch_size": 100,
        "num_workers": 0,
    },
    "trainer": {"limit_train_batches": 2, "max_epochs": 1, "accelerator": "cpu"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("responses")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESSCALE_RUN_DIR", "")  # the run sets it; taken back behind the fixture
        arguments = ["--config", str(folder / "tiny.yaml"), "--run_dir", str(folder / "run")]
        assert main(["fit", *arguments]) == 0
    return folder / "run"


def test_the_responses_are_those_of_the_trained_net_on_the_normalised_validation_images(
    trained: Path,
) -> None:
    written = json.loads(measure_responses(trained, num_images=150).read_text())
    assert written["num_images"] == 150
    net = create_model("resnet8_cifar", num_classes=10, in_channels=1)
    (newest,) = (trained / "checkpoints").glob("epoch-*.ckpt")
    state = torch.load(newest, weights_only=True)["state_dict"]
    net.load_state_dict({k.removeprefix("model."): v for k, v in state.items()})
    from resscale.data import ShardDataModule

    data = ShardDataModule(**CONFIG["data"])
    images = torch.cat([batch["image"] for batch in data.val_dataloader()])[:150]  # type: ignore[union-attr]
    expected = layer_responses(net, [(images / 255 - 0.3053) / 0.3762])
    assert [layer["name"] for layer in written["layers"]] == [r.name for r in expected]
    found = [layer["std"] for layer in written["layers"]]
    assert found == pytest.approx([response.std for response in expected], rel=1e-4)


def test_all_images_are_taken_where_there_are_fewer_than_asked_for(trained: Path) -> None:
    written = json.loads(measure_responses(trained, num_images=1000).read_text())
    assert written["num_images"] == 360  # of the digits' test split: no filler of the last batch


def test_the_report_measures_and_draws_them(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(trained), "--layer_responses", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {trained}/layer_responses.json" in said
    assert f"wrote {tmp_path}/report-responses.png" in said
    assert "Layer responses" in out.read_text()
    assert (tmp_path / "report-responses.png").stat().st_size > 10_000


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    RunDir(tmp_path).config.write_text(yaml.safe_dump(CONFIG))
    with pytest.raises(UserInputError, match="has no whole checkpoint, and --layer_responses"):
        measure_responses(tmp_path)


def test_a_run_without_validation_shards_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(trained / "checkpoints")
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["data"]["val"] = None
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserInputError, match=r"data\.val is not set"):
        measure_responses(tmp_path)
