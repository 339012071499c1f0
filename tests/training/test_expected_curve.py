"""The promised learning curve: where it lies between its points, and when a run has left it."""

import json
from pathlib import Path

import pytest

from resscale.cli import main
from resscale.errors import UserInputError
from resscale.training.expected_curve import ExpectedCurve, newest_evaluations, shortfall

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
CURVE = ExpectedCurve({30: 0.5, 60: 0.7, 90: 0.76})
CONFIG = """
model: {model: resnet20_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, val: builtin:digits/test, channels: 1, image_size: 8,
       train_crop: center, global_batch_size: 64, eval_batch_size: 360, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 3, limit_train_batches: 2}
"""


@pytest.mark.parametrize(
    ("epoch", "top1"),
    [
        (29.9, None),
        (30, 0.5),
        (45, 0.6),  # half-way: (0.5 + 0.7) / 2
        (80, 0.74),  # 0.7 + 0.06 × 20/30
        (90, 0.76),
        (120, 0.76),
    ],
)
def test_between_its_points_the_curve_is_straight(epoch: float, top1: float | None) -> None:
    found = CURVE.at(epoch)
    assert found == (None if top1 is None else pytest.approx(top1))


def test_points_may_stand_in_any_order() -> None:
    assert ExpectedCurve({60: 0.7, 30: 0.5}).at(45) == pytest.approx(0.6)


def test_no_points_expect_nothing() -> None:
    assert ExpectedCurve().at(10) is None


def test_the_best_of_the_newest_evaluations_counts() -> None:
    # 0.6 - 0.58 = 0.02 is within 0.03, however bad the others are.
    assert shortfall([0.58, 0.1, 0.2], 0.6, 0.03) is None
    assert shortfall([0.5, 0.1, 0.2], 0.6, 0.03) == pytest.approx(0.1)  # 0.6 - 0.5
    assert shortfall([0.5], None, 0.03) is None
    assert shortfall([], 0.6, 0.03) is None


@pytest.mark.parametrize(
    ("top1", "tolerance", "said"),
    [
        ({0: 0.5}, 0.03, "expected.top1 has 0.5 for epoch 0; epochs must be above 0"),
        ({30: 76.1}, 0.03, "expected.top1 has 76.1 for epoch 30"),
        ({30: 0.5}, 3.0, "expected.tolerance=3 must be a fraction"),
    ],
)
def test_what_cannot_be_is_refused(top1: dict[float, float], tolerance: float, said: str) -> None:
    with pytest.raises(UserInputError, match=said):
        ExpectedCurve(top1, tolerance)


def fit(tmp_path: Path, *options: str) -> tuple[list[dict[str, float]], Path]:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    run = tmp_path / "run"
    assert main(["fit", "--config", str(config), "--run_dir", str(run), *options]) == 0
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == "off_curve"], run


def test_a_run_below_its_curve_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off, _ = fit(
        tmp_path, "--expected.top1", "{1: 0.99, 3: 0.999}", "--expected.source", "a promise"
    )
    assert [(event["epoch"], event["expected_top1"]) for event in off] == [(1.0, 0.99)]
    said = capsys.readouterr().err
    assert said.count("off the curve: top-1 ") == 1
    assert "after 1 epochs, the best of the last 1 evaluations; 99.00% is expected (a promise)" in (
        said
    )


def test_a_run_on_its_curve_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    off, _ = fit(tmp_path, "--expected.top1", "{1: 0.01, 3: 0.02}")
    assert off == []
    assert "off the curve" not in capsys.readouterr().err


def test_a_run_s_saved_configuration_is_read_again(tmp_path: Path) -> None:
    _, run = fit(tmp_path, "--expected.top1", "{1: 0.01, 2.5: 0.02}")
    assert main(["validate", "--run_dir", str(run), "--ckpt_path", "best"]) == 0


def test_keys_that_have_been_json_are_numbers_again() -> None:
    assert ExpectedCurve({"30": 0.5, "60": "0.7"}).at(45) == pytest.approx(0.6)  # type: ignore[dict-item]


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"expected\.top1 has 'last', which is no number"):
        ExpectedCurve({"last": 0.5})  # type: ignore[dict-item]


def test_the_newest_evaluations_are_read_from_the_table(tmp_path: Path) -> None:
    table = tmp_path / "metrics.csv"
    assert newest_evaluations(table) == []
    table.write_text(
        "epoch,step,train/loss,val/top1,val/ema_top1\n"
        "0,2,1.0,,\n0,4,,0.1,\n1,8,,0.2,0.3\n2,12,,0.4,0.3\n3,16,,0.5,\n"
    )
    assert newest_evaluations(table) == [(8, 0.3), (12, 0.4), (16, 0.5)]


def test_a_resumed_run_that_was_off_its_curve_is_not_told_again(tmp_path: Path) -> None:
    curve = ("--expected.top1", "{1: 0.99, 9: 0.999}")
    off, run = fit(tmp_path, *curve)
    assert len(off) == 1
    again = ["fit", "--run_dir", str(run), "--ckpt_path", "auto", "--trainer.max_epochs", "4"]
    assert main(again) == 0
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "off_curve" for event in events) == 1
