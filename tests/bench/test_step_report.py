"""The step's table: shares, floors and rates follow from what was measured."""

import json

import pytest

from resscale.bench.floor import Floor
from resscale.bench.peaks import Peaks
from resscale.bench.step_report import StepResult, render_step, step_as_json
from resscale.bench.turns import Round, medians

SECONDS = {
    "host to device": 0.0,
    "forward": 0.3,
    "backward": 0.5,
    "optimizer": 0.1,
    "step": 0.9,
    "framework": 0.1,
    "fit": 1.0,
}
RESULT = StepResult(
    what="resnet8_cifar",
    device="a device",
    rows=32,
    macs=1_000_000,
    seconds=SECONDS,
    floors={"forward": Floor(0.1, "arithmetic"), "optimizer": Floor(0.05, "memory")},
    peaks=Peaks(1e9, "measured", 1e10),
    memory_bytes=2**30,
    rounds=3,
)


def test_rates_and_utilisation_are_those_of_the_whole_loop() -> None:
    assert RESULT.images_per_s == 32.0
    # 32 images × 3 passes × 2 operations × 1e6 in a second, of 1e9
    assert RESULT.mfu == pytest.approx(0.192)


def test_each_part_stands_beside_its_floor() -> None:
    rows = {line[:16].strip(): line[16:].split() for line in render_step(RESULT).splitlines()}
    assert rows["forward"] == ["300.00", "30.0%", "100.00", "arithmetic", "3.00"]
    assert rows["optimizer"] == ["100.00", "10.0%", "50.00", "memory", "2.00"]
    assert rows["framework"] == ["100.00", "10.0%"]
    assert rows["whole step"] == ["1000.00", "100.0%", "150.00", "arithmetic", "6.67"]
    assert "32.0 images/s, MFU 19.2%, 1.00 GiB" in render_step(RESULT)


def test_json_has_everything() -> None:
    found = json.loads(json.dumps(step_as_json(RESULT)))
    assert found["seconds"]["forward"] == 0.3
    assert found["floors"]["optimizer"] == {"seconds": 0.05, "bound": "memory"}
    assert found["images_per_s"] == 32.0


def test_the_framework_is_the_median_difference_within_pairs() -> None:
    parts = {"host to device": 0.0, "forward": 0.0, "backward": 0.0, "optimizer": 0.0}
    # A disturbance of both blocks of a pair leaves their difference as it is.
    rounds = [Round(1.1, {**parts, "step": 1.0}), Round(2.2, {**parts, "step": 2.0})]
    rounds.append(Round(5.05, {**parts, "step": 5.0}))
    assert medians(rounds)["framework"] == pytest.approx(0.1)
    assert medians(rounds)["step"] == 2.0
