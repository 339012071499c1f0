"""`--profile`: a trace that viewers read, a table of costs, and nothing where it is off."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.autograd import DeviceType

from resscale.cli import main
from resscale.errors import UserInputError
from resscale.training.profile import Cost, ProfileConfig, costs_of, profile_config, top_costs

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
CONFIG = """
model: {model: resnet8_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, channels: 1, image_size: 8, train_crop: center,
       global_batch_size: 32, micro_batch_size: 16, num_workers: 0}
trainer: {accelerator: cpu, max_epochs: 1, limit_train_batches: 14}
"""


@pytest.fixture
def fit(tmp_path: Path) -> Callable[..., Path]:
    """Train 7 steps of two micro-batches in this process; return the folder of profiles."""
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    arguments = ["--config", f"{tmp_path}/tiny.yaml", "--run_dir", f"{tmp_path}/run"]

    def run(*more: str) -> Path:
        assert main(["fit", *arguments, *more]) == 0
        return tmp_path / "run" / "profile"

    return run


def test_the_steps_asked_for_are_in_a_trace_and_a_table(
    fit: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit("--profile.after", "3", "--profile.steps", "2")
    trace, table = folder / "rank-0-step-4.trace.json.gz", folder / "rank-0-step-4.txt"
    assert sorted(folder.iterdir()) == [trace, table]
    with gzip.open(trace, "rt") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name", "") for event in events]
    steps = {name for name in names if name.startswith("ProfilerStep")}
    assert steps == {"ProfilerStep#3", "ProfilerStep#4"}  # counted from 0
    # Each of two steps has two passes through nine convolutions of resnet8.
    convolutions = names.count("aten::convolution")
    assert convolutions > 0
    assert convolutions % (2 * 2) == 0
    text = table.read_text()
    said = capsys.readouterr().out
    assert f"profile of steps 4 to 5: {trace}\n{text}" in said
    assert "CPU ms/step" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    row = next(line.split() for line in text.splitlines() if "convolution_backward" in line)
    assert float(row[1]) == convolutions / 2


@pytest.mark.parametrize("words", [("--profile",), ("--profile", "true")])
def test_the_word_is_enough_and_a_run_that_is_too_short_says_so(
    fit: Callable[..., Path], capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    folder = fit(*words)
    assert not folder.exists()
    assert "--profile: training ended before its step 11" in capsys.readouterr().out


def test_what_a_training_that_ends_early_has_recorded_is_kept(fit: Callable[..., Path]) -> None:
    folder = fit("--profile.after", "4", "--profile.steps", "99")
    assert (folder / "rank-0-step-5.txt").exists()


def test_without_the_option_there_is_no_profiler(
    fit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr("resscale.cli_lightning.StepProfiler", made.append)
    assert not fit().exists()
    assert made == []
    assert profile_config(False) is None
    assert profile_config(True) == ProfileConfig()


def test_the_table_adds_up_and_sorts_by_the_gpus_time_where_there_is_some() -> None:
    costs = [Cost("read", 4, 8.0, 0.0), Cost("conv", 2, 1.0, 6.0), Cost("norm", 2, 1.0, 2.0)]
    lines = [line.split() for line in top_costs(costs, steps=2, rows=1).splitlines()]
    assert lines[0] == ["operation", "calls/step", "GPU", "ms/step", "share"]
    assert lines[1] == ["conv", "1.0", "3.000", "75.0%"]  # 6 ms of 2 steps, 6 of 8
    assert lines[2] == ["all", "others", "1.000", "25.0%"]
    on_cpu = [Cost(cost.name, cost.calls, cost.cpu_ms, 0.0) for cost in costs]
    assert top_costs(on_cpu, steps=2).splitlines()[1].split() == ["read", "2.0", "4.000", "80.0%"]


def event(key: str, device: DeviceType, device_us: float, *, is_mark: bool = False) -> Any:
    """An average of the profiler's."""
    on_cpu = device == DeviceType.CPU
    return SimpleNamespace(
        key=key,
        count=1,
        device_type=device,
        is_user_annotation=is_mark,
        self_cpu_time_total=1500.0 if on_cpu else 0.0,
        self_device_time_total=device_us,
    )


def test_a_gpus_time_is_counted_once() -> None:
    events = [
        event("ProfilerStep*", DeviceType.CPU, 0.0, is_mark=True),
        event("ProfilerStep*", DeviceType.CUDA, 9000.0, is_mark=True),
        event("Optimizer.step#SGD.step", DeviceType.CUDA, 2000.0, is_mark=True),
        # An operation, and the kernel that it launched.
        event("aten::add", DeviceType.CPU, 2000.0),
        event("add_kernel", DeviceType.CUDA, 2000.0),
    ]
    assert costs_of(events) == [
        Cost("Optimizer.step#SGD.step", 1, 0.0, 0.0),
        Cost("aten::add", 1, 1.5, 0.0),
        Cost("add_kernel", 1, 0.0, 2.0),
    ]


def test_values_outside_their_range_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"profile.steps=0 must be at least 1"):
        ProfileConfig(steps=0)
    with pytest.raises(UserInputError, match=r"profile.after=-1 must be 0 or more"):
        ProfileConfig(after=-1)
