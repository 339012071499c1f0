"""The words at the start and end of a run, from what it is and what it has left."""

from pathlib import Path

import PIL
import pytest

from resscale.cli_announce import decoder_lines, result_lines, start_lines, weights_line
from resscale.data.datamodule import ShardDataModule
from resscale.models.weights import LoadedWeights
from resscale.training.classifier import ImageClassifier
from resscale.training.optim import OptimizerConfig
from resscale.training.rundir import RunDir

FACTS = {"samples_seen": 12_800, "images_per_s": 1234.5, "bad_samples": 0, "val_top1": 0.98765}


def test_the_result_is_told_with_the_next_command_to_try(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "my run")
    run.write_summary(FACTS)
    assert result_lines(run, "done", None) == [
        "done: val top-1 98.77%, 12,800 images seen, 1,234 images/s",
        f"run directory: {run.path}",
        f"next:  resscale validate --run_dir '{run.path}' --ckpt_path best",
    ]


@pytest.mark.parametrize(("bad", "said"), [(0, "images/s"), (3, "images/s, 3 damaged")])
def test_damaged_samples_are_told(tmp_path: Path, bad: int, said: str) -> None:
    run = RunDir(tmp_path)
    run.write_summary({**FACTS, "bad_samples": bad})
    assert result_lines(run, "done", None)[0].endswith(said)


def test_without_a_validation_there_is_no_accuracy_to_tell(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.write_summary({**FACTS, "val_top1": None})
    first, _, last = result_lines(run, "done", None)
    assert first == "done: 12,800 images seen, 1,234 images/s"
    assert last == f"next:  resscale predict --run_dir {tmp_path} --data.predict IMAGES"


def test_a_run_that_was_done_before_says_so(tmp_path: Path) -> None:
    assert result_lines(RunDir(tmp_path), "done", Path("a.ckpt")) == [
        "done: nothing was left to train from a.ckpt on."
    ]


@pytest.mark.parametrize(
    ("skipped", "said"), [((), ""), (("fc.weight", "fc.bias"), ", without fc.weight, fc.bias")]
)
def test_the_first_weights_are_named_with_what_was_left_out(
    skipped: tuple[str, ...], said: str
) -> None:
    loaded = LoadedWeights("resnet50.pth", "", 320, skipped, ())
    assert weights_line(loaded) == f"weights: 320 tensors of resnet50.pth{said}"


def test_the_decoder_is_named_with_its_version() -> None:
    (line,) = decoder_lines(ShardDataModule(decoder="pillow"))
    assert line == f"decoder: pillow (pillow {PIL.__version__})"


def test_going_on_with_another_decoder_is_told() -> None:
    data = ShardDataModule(decoder="pillow")
    data.decoder_before = "simplejpeg"
    _, warning = decoder_lines(data)
    assert warning.startswith("warning: this run has decoded with simplejpeg so far")


@pytest.mark.parametrize(("name", "warned"), [("sgd", False), ("lamb", True)])
def test_a_rate_that_lamb_does_not_train_with_is_warned_of_at_the_start(
    tmp_path: Path, name: str, warned: bool
) -> None:
    data = ShardDataModule("builtin:digits/train", channels=1, image_size=8, global_batch_size=256)
    optimizer = OptimizerConfig(name=name, lr=0.2)
    model = ImageClassifier("resnet8_cifar", 10, 1, optimizer=optimizer)
    lines = start_lines(RunDir(tmp_path), data, model, 1)
    warning = "warning: model.optimizer.lr comes to 0.2: a step of lamb moves each layer by 20%"
    assert any(line.startswith(warning) for line in lines) is warned
