"""`resscale export`, called with the arguments that a user types, on a real run."""

import csv
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import yaml
from safetensors.torch import load_file

from resscale.cli import main
from resscale.cli_export import run_export
from resscale.errors import UserInputError
from resscale.models import create_model, load_weights

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
        "eval_batch_size": 360,
        "num_workers": 0,
    },
    "trainer": {"limit_train_batches": 4, "max_epochs": 2, "accelerator": "cpu"},
    "ema": {"decay": 0.5, "warmup": False},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of four steps, with averaged weights."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESSCALE_RUN_DIR", "")  # the run sets it; taken back behind the fixture
        arguments = ["--config", str(folder / "tiny.yaml"), "--run_dir", str(folder / "run")]
        assert main(["fit", *arguments]) == 0
    return folder / "run"


def checkpoint(run: Path, name: str = "best.ckpt") -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run / "checkpoints" / name, weights_only=True)
    return loaded


def plain(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix("model."): value for key, value in state.items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def table(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", card, re.M))


def test_help_shows_an_example_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from resscale.cli_export import run_export; run_export(['--help']);"
        "heavy = {'numpy', 'torch', 'onnx', 'lightning', 'yaml'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "examples:\n  resscale export runs/demo demo.safetensors\n" in done.stdout


def test_a_run_gives_its_best_weights_and_says_which(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "net.safetensors"
    assert main(["export", str(run), str(out)]) == 0
    assert_equal(load_file(out), plain(checkpoint(run)["state_dict"]))
    step = checkpoint(run)["resscale"]["global_step"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        f"weights: {run}/checkpoints/best.ckpt, step {step}, raw; it has averaged ones too: "
        f"--ema true"
    )
    assert lines[1] == "network: resnet8_cifar, 75,002 parameters, 10 classes, 1 channel"
    assert lines[2].startswith(f"wrote {out} ({out.stat().st_size:,} bytes, SHA-256 ")
    assert lines[3] == f"wrote {tmp_path}/net.md"
    net = create_model("resnet8_cifar", 10, 1)
    assert load_weights(net, out, strict=True).num_tensors == len(net.state_dict())


def test_averaged_weights_are_given_on_request(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.pth"
    assert main(["export", str(run), str(out), "--ema", "true"]) == 0
    saved = checkpoint(run)
    found = torch.load(out, weights_only=True)
    assert_equal(found, plain(saved["ema_state_dict"]))
    assert not torch.equal(found["conv1.weight"], saved["state_dict"]["model.conv1.weight"])
    assert "Weights: EMA, from" in (tmp_path / "net.md").read_text()


def test_an_onnx_file_answers_as_the_trained_net_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    out = tmp_path / "net.onnx"
    assert main(["export", str(last), str(out), "--with_preprocessing", "true"]) == 0
    said = capsys.readouterr().out
    assert "ONNX, opset 18; input images uint8, 0 to 255, (batch, 1, 8, 8)\n" in said
    assert re.search(
        r"onnxruntime and torch differ by at most \d\S*e-0\d in logits of up to ", said
    )
    net = create_model("resnet8_cifar", 10, 1).eval()
    net.load_state_dict(plain(checkpoint(run, "last.ckpt")["state_dict"]))
    pixels = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": pixels.numpy()})
    with torch.no_grad():
        expected = net((pixels / 255 - 0.3053) / 0.3762)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def test_the_card_says_what_the_run_recorded(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "net.pth")]) == 0
    card = (tmp_path / "net.md").read_text()
    found, saved = table(card), checkpoint(run)["resscale"]
    with (run / "metrics.csv").open(newline="") as file:
        measured = [row for row in csv.DictReader(file) if row["val/top1"]]
    (own,) = (row for row in measured if int(row["step"]) == saved["global_step"])
    top1, top5, ema = (float(own[f"val/{name}"]) for name in ("top1", "top5", "ema_top1"))
    assert f"| raw (these) | {top1:.2%} | {top5:.2%} |" in card
    assert f"| EMA | {ema:.2%} | " in card
    assert found["fingerprint of the manifest"] == f"`{saved['manifest']}`"
    assert found["training samples"] == "1,437"
    assert found["epochs"] == (
        f"{saved['global_step']} optimizer steps, {64 * saved['global_step']} images"
    )
    assert found["EMA"] == "decay 0.5, warmup false"
    assert found["mean"] == "0.3053"
    assert found["recipe"].endswith("tiny.yaml`")
    assert f"resscale export {run} {tmp_path}/net.pth" in card
    config = yaml.safe_load(card.partition("~~~~yaml")[2].partition("~~~~")[0])
    assert config == saved["config"]


def test_several_forms_of_the_same_weights_share_a_card(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), str(tmp_path / "net.pth")]) == 0
    assert main(["export", str(run), str(tmp_path / "net.safetensors")]) == 0
    listed = re.findall(r"^\| `([^`]+)` \|", (tmp_path / "net.md").read_text(), re.M)
    assert listed == ["net.pth", "net.safetensors"]
    # Others have another card.
    with pytest.raises(UserInputError, match=r"net\.md is there already; choose another name"):
        run_export([str(run), str(tmp_path / "net.onnx"), "--ema", "true"])
    assert not (tmp_path / "net.onnx").exists()


def test_a_file_that_is_there_is_replaced_on_request_only(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.pth"
    out.write_bytes(b"mine")
    with pytest.raises(UserInputError, match="is there already"):
        run_export([str(run), str(out)])
    assert out.read_bytes() == b"mine"
    assert run_export([str(run), str(out), "--overwrite", "true"]) == 0
    assert_equal(torch.load(out, weights_only=True), plain(checkpoint(run)["state_dict"]))


def test_plain_weights_need_the_name_of_their_net(run: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.pth", tmp_path / "second.safetensors"
    assert run_export([str(run), str(first)]) == 0
    with pytest.raises(UserInputError, match=r"first\.pth does not say which net"):
        run_export([str(first), str(second)])
    stated = ["--model", "resnet8_cifar", "--num_classes", "10", "--in_channels", "1"]
    assert run_export([str(first), str(second), *stated]) == 0
    assert_equal(load_file(second), torch.load(first, weights_only=True))
    card = (tmp_path / "second.md").read_text()
    assert "| raw (these) | not measured | not measured |" in card
    assert "## Training\n\nNot recorded" in card


def test_options_of_the_net_are_stated_as_yaml(tmp_path: Path) -> None:
    net = create_model("resnet8_cifar", 10, shortcut="B", se=8)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    arguments = [str(tmp_path / "net.pth"), str(tmp_path / "out.safetensors")]
    arguments += ["--model", "resnet8_cifar", "--num_classes", "10", "--model_options"]
    assert run_export([*arguments, "{shortcut: B, se: 8}"]) == 0
    assert_equal(load_file(tmp_path / "out.safetensors"), net.state_dict())
    for wrong in ("shortcut", "{shortcut: ["):
        with pytest.raises(UserInputError, match=r"--model_options .* must be a mapping"):
            run_export([*arguments, wrong])


def test_a_compiled_checkpoint_gives_the_plain_keys(run: Path, tmp_path: Path) -> None:
    saved = checkpoint(run)
    eager = plain(saved["state_dict"])
    saved["state_dict"] = {f"model._orig_mod.{key}": value for key, value in eager.items()}
    torch.save(saved, tmp_path / "compiled.ckpt")
    assert run_export([str(tmp_path / "compiled.ckpt"), str(tmp_path / "net.safetensors")]) == 0
    assert_equal(load_file(tmp_path / "net.safetensors"), eager)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("RUN", "the following arguments are required: OUT"),
        ("RUN net.pt", r"net\.pt must end in \.safetensors, \.pth or \.onnx"),
        (
            "RUN net.pth --emma true",
            r"unrecognized arguments: --emma true\. Did you mean '--ema'\?",
        ),
        ("RUN net.pth --ema yes", "argument --ema: invalid choice: 'yes'"),
        ("RUN net.pth --with_preprocessing true", r"net\.pth holds weights alone\. Leave it out"),
        ("RUN net.onnx --image_size 0", "--image_size 0 must be at least 1 pixel"),
        ("RUN net.onnx --image_size 2", "An input of 2x2 pixels is too small"),
        ("RUN net.pth --model resnet18", r"--model: .* says itself which net .*\(resnet8_cifar\)"),
        ("nothing net.pth", "there is no nothing; name a run directory"),
    ],
)
def test_what_cannot_be_done_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserInputError, match=message):
        run_export(line.replace("RUN", str(run)).split())
    assert list(tmp_path.iterdir()) == []
