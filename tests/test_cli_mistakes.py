"""Mistakes of real checkpoints, measured and drawn by `resscale report --mistakes`."""

import io
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
import yaml
from PIL import Image

from resscale.cli import main
from resscale.cli_mistakes import choose_weights, likeliest, measure_mistakes
from resscale.data import ShardDataModule
from resscale.errors import UserInputError
from resscale.models import create_model
from resscale.report.mistakes_file import Measured, read_measured
from resscale.training.ema_checkpoint import EMA_KEY
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
    "trainer": {"limit_train_batches": 8, "max_epochs": 1, "accelerator": "cpu"},
    "ema": {"decay": 0.5},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESSCALE_RUN_DIR", "")  # the run sets it; taken back behind the fixture
        arguments = ["--config", str(folder / "tiny.yaml"), "--run_dir", str(folder / "run")]
        assert main(["fit", *arguments]) == 0
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def measured_of(run: Path, asked: str | None = None) -> Measured:
    measure_mistakes(run, asked)
    found = read_measured(run)
    assert found is not None
    return found


def change_config(run: Path, **changes: Any) -> None:
    """Change options of `data` in a run's configuration."""
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["data"].update(changes)
    path.write_text(yaml.safe_dump(config))


def change_checkpoint(run: Path, **weights: torch.Tensor) -> None:
    """Change weights of a run's best checkpoint, and drop the averaged ones."""
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint.pop(EMA_KEY)
    for name, value in weights.items():
        key = f"model.{name.replace('__', '.')}"
        assert checkpoint["state_dict"][key].shape == value.shape
        checkpoint["state_dict"][key] = value
    path.unlink()  # a hard link to the numbered one
    torch.save(checkpoint, path)


def test_the_mistakes_are_those_of_the_checkpoint_on_the_evaluation_crops(run: Path) -> None:
    measured = measured_of(run)
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    state = checkpoint[EMA_KEY] if measured.averaged else checkpoint["state_dict"]
    net = create_model("resnet8_cifar", num_classes=10, in_channels=1).eval()
    net.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    loader = ShardDataModule(**CONFIG["data"]).val_dataloader()
    expected: Counter[tuple[int, int]] = Counter()
    wrong = []
    for batch in loader:  # type: ignore[union-attr]
        with torch.no_grad():
            given = net((batch["image"] / 255 - 0.3053) / 0.3762).softmax(dim=1)
        for row, label in enumerate(batch["label"].tolist()):
            if label >= 0:
                predicted = int(given[row].argmax())
                expected[label, predicted] += 1
                if predicted != label:
                    wrong.append(float(given[row].max()))
    assert measured.num_scored == expected.total() == 360
    assert {(a, b): n for a, b, n in measured.pairs} == {
        pair: n for pair, n in expected.items() if pair[0] != pair[1]
    }
    assert measured.hits == tuple(expected[label, label] for label in range(10))
    most = [shown.probability for shown in measured.confident]
    assert most == pytest.approx(sorted(wrong, reverse=True)[:40], rel=1e-4)
    assert measured.global_step == 8
    assert measured.checkpoint == "checkpoints/best.ckpt"


def test_a_net_that_always_says_three_gives_the_known_numbers(run: Path) -> None:
    # Logits are ln 9 for 3 and 0 for the nine others: 3 has 9 / (9 + 9) = 50%, each other 1/18.
    bias = torch.zeros(10)
    bias[3] = math.log(9)
    change_checkpoint(run, fc__weight=torch.zeros(10, 64), fc__bias=bias)
    measured = measured_of(run)
    assert measured.hits == (0, 0, 0, measured.samples[3], *[0] * 6)
    assert sorted(measured.pairs) == [(c, 3, measured.samples[c]) for c in range(10) if c != 3]
    assert {shown.predicted for shown in measured.confident} == {3}
    assert all(shown.probability == pytest.approx(0.5) for shown in measured.confident)
    given = [shown.label_probability for shown in measured.confident]
    # Of nine classes with equal logits four are among the five likeliest, whichever.
    assert all(p is None or p == pytest.approx(1 / 18) for p in given)
    # Equally confident: the first 40 images that are no threes, in the order of the shards.
    samples = ShardDataModule(**CONFIG["data"]).samples("val")
    first = [sample for sample in range(len(samples)) if samples.read(sample)[1] != 3][:40]
    assert [shown.key for shown in measured.confident] == [samples.key(n) for n in first]
    assert not measured.averaged


def test_nothing_is_measured_twice_and_another_checkpoint_anew(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = measure_mistakes(run)
    assert capsys.readouterr().out == f"wrote {path}\n"
    before = path.stat().st_mtime_ns
    measure_mistakes(run)
    assert path.stat().st_mtime_ns == before
    assert f"{path} is of {run}/checkpoints/best.ckpt already" in capsys.readouterr().out
    change_checkpoint(run, fc__bias=100 * torch.arange(10.0))
    assert {predicted for _, predicted, _ in measured_of(run).pairs} == {9}
    path.write_text("{")
    assert measured_of(run).num_scored == 360  # damaged, so measured anew


def test_a_checkpoint_can_be_named(run: Path, tmp_path: Path) -> None:
    assert measured_of(run, "auto").checkpoint == "checkpoints/epoch-0001-step-00000008.ckpt"
    change_checkpoint(run, fc__bias=100 * torch.arange(10.0))
    best = measured_of(run, "best")
    assert best.checkpoint == "checkpoints/best.ckpt"
    other = tmp_path / "other.ckpt"
    torch.save(torch.load(run / "checkpoints" / "best.ckpt", weights_only=True), other)
    assert measured_of(run, str(other)).checkpoint == str(other)
    (run / "checkpoints" / "best.ckpt").unlink()
    assert measured_of(run).checkpoint == "checkpoints/epoch-0001-step-00000008.ckpt"
    with pytest.raises(UserInputError, match=r"has no best\.ckpt, and --mistakes"):
        measure_mistakes(run, "best")
    with pytest.raises(UserInputError, match=r"--ckpt_path no\.ckpt: there is no such file"):
        measure_mistakes(run, "no.ckpt")


@pytest.mark.parametrize(
    ("rows", "averaged", "why"),
    [
        ([(8, 0.5, 0.75)], True, "they scored 75.00% at this step, the weights as trained 50.00%"),
        ([(8, 0.75, 0.5)], False, "they scored 75.00% at this step, the averaged ones 50.00%"),
        ([(8, 0.5, 0.5)], False, "they scored 50.00% at this step, the averaged ones 50.00%"),
        # Another step's score says nothing of this one.
        ([(4, 0.5, 0.75)], False, "how the averaged weights score is not recorded"),
        ([(8, 0.5, 0.25), (8, 0.5, 0.75)], True, "they scored 75.00% at this step, the weights as"),
    ],
)
def test_those_weights_are_measured_that_scored_higher(
    rows: list[tuple[int, float, float]], averaged: bool, why: str
) -> None:
    checkpoint = {"global_step": 8, EMA_KEY: {}}
    table = [{"step": s, "epoch": 0, "val/top1": t, "val/ema_top1": e} for s, t, e in rows]
    found, reason = choose_weights(checkpoint, table)
    assert found is averaged
    assert reason.startswith(why)
    assert choose_weights({"global_step": 8}, table) == (False, "")


def test_of_equal_logits_the_first_class_is_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [0.0] * 4]).bfloat16()
    classes, probabilities = likeliest(logits, most=3)
    assert classes.tolist() == [[1, 2, 3], [0, 1, 2]]
    assert classes[:, 0].tolist() == logits.argmax(dim=1).tolist()
    total = 1 + 2 * math.e**2 + math.e
    assert probabilities[0].tolist() == pytest.approx([math.e**2 / total] * 2 + [math.e / total])
    assert probabilities[1].tolist() == [0.25] * 3
    assert likeliest(torch.zeros(2, 1))[0].tolist() == [[0], [0]]


def test_averaged_weights_are_those_that_are_measured(run: Path) -> None:
    rows = RunDir(run).metrics.read_text().splitlines()
    trained = measured_of(run)
    # The table says that the other weights were better; so they are measured instead.
    swapped = "0.9" if not trained.averaged else "0.0"
    for number, line in enumerate(rows):
        cells = line.split(",")
        if cells[7] not in ("", "val/ema_top1"):
            cells[7] = swapped
            rows[number] = ",".join(cells)
    RunDir(run).metrics.write_text("\n".join(rows) + "\n")
    other = measured_of(run)
    assert other.averaged != trained.averaged
    assert other.identity == trained.identity
    assert [shown.probability for shown in other.confident] != [
        shown.probability for shown in trained.confident
    ]


def test_a_damaged_image_is_named_and_counts_nowhere(run: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    with webdataset.ShardWriter(str(shards / "a-%d.tar"), verbose=0) as writer:
        for number in range(12):
            buffer = io.BytesIO()
            Image.new("L", (8, 8), 20 * number).save(buffer, "PNG")
            raw = buffer.getvalue() if number != 5 else b"no image"
            writer.write({"__key__": f"digit{number}", "png": raw, "cls": number % 10})
    assert main(["index", str(shards)]) == 0
    change_config(run, val=str(shards), eval_batch_size=8)
    measured = measured_of(run)
    assert (measured.num_scored, measured.num_bad) == (11, 1)
    assert measured.samples[5] == 0  # it was the only one of its class
    ((key, reason),) = measured.bad
    assert key == "digit5"
    assert reason
    assert all(shown.key != "digit5" for shown in measured.confident)


def test_the_report_measures_and_draws_them(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(run), "--mistakes", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"wrote {run}/mistakes.json" in said
    assert f"wrote {tmp_path}/report-run.html" in said
    page = (tmp_path / "report-run.html").read_text()
    for title in ("Worst-classified classes", "Most confident mistakes", "Confusion"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("data:image/png;base64,") == 40
    # The next report draws it without being asked, and a page of its own for each run.
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert "Most confident mistakes" in (tmp_path / "report-run.html").read_text()
    memory = page.partition("<dt>most memory</dt><dd>")[2].partition(" GiB")[0]
    assert 0.05 < float(memory) < 100  # of a process that has loaded torch


def test_a_run_without_a_checkpoint_or_configuration_is_refused(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserInputError, match="has no whole checkpoint, and --mistakes measures"):
        measure_mistakes(run)


def test_a_run_without_validation_shards_is_refused(run: Path) -> None:
    change_config(run, val=None)
    with pytest.raises(UserInputError, match=r"data\.val is not set"):
        measure_mistakes(run)


def test_a_checkpoint_of_another_net_is_refused(run: Path, tmp_path: Path) -> None:
    net = create_model("resnet14_cifar", num_classes=10, in_channels=1)
    state = {f"model.{key}": value for key, value in net.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 1}, tmp_path / "other.ckpt")
    with pytest.raises(UserInputError, match=r"other\.ckpt"):
        measure_mistakes(run, str(tmp_path / "other.ckpt"))


def test_the_net_computes_in_the_precision_of_the_run(run: Path) -> None:
    exact = measured_of(run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"]["precision"] = "bf16-mixed"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "mistakes.json").unlink()
    rounded = measured_of(run)
    assert (exact.precision, rounded.precision) == ("32-true", "bf16-mixed")
    sure = [[shown.probability for shown in found.confident] for found in (exact, rounded)]
    assert sure[0] != sure[1]
    # bfloat16 has 8 bits: about 0.4% of a logit.
    assert max(sure[0]) == pytest.approx(max(sure[1]), rel=0.1)
