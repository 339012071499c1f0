"""What would be refused on the nodes is refused before the job is sent."""

from pathlib import Path

import pytest

from resscale.cli_submit_check import check_trainer, check_training
from resscale.cluster.submission import Shape
from resscale.errors import UserInputError

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
DEMO = str(Path(__file__).resolve().parents[1] / "configs" / "demo.yaml")
FOUR_CPUS = Shape(2, 2, 0, None)
EIGHT_GPUS = Shape(1, 8, 8, None)
TRAINER = {
    "num_nodes": 1, "devices": "auto", "accelerator": "auto", "strategy": "auto",
    "precision": "32-true",
}  # fmt: skip


def test_a_training_that_fits_is_told_in_numbers() -> None:
    checked = check_training(["--config", DEMO], FOUR_CPUS, check_data=True)
    assert checked.name == "demo"
    assert checked.run_dir is None
    assert not checked.resumes
    batches, samples = checked.lines
    assert batches == "16/rank × 4 ranks × 1 accum = 64 global; lr 0.1"
    assert samples == "1,437 training samples = 22 steps per epoch, 20 epochs"  # 1437 // 64


def test_a_batch_that_the_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"not divisible by 3 ranks; choose 63 or 66"):
        check_training(["--config", DEMO], Shape(3, 1, 0, None), check_data=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.train", "shards/nowhere"], "No shards at shards/nowhere"),
        (["--model.num_classes", "3"], "have labels from 3 to 9, the model has num_classes=3"),
        (["--weights", "nowhere.pth"], r"There is no weights file nowhere\.pth"),
        (["--data.image_size", "2"], "2x2 pixels is too small"),
        (
            [
                f"--data.progressive.{word}"
                for word in ("from_size=2", "until_epoch=3", "multiple=2")
            ],
            "2x2 pixels is too small",
        ),
        (["--data.repeats", "3"], "data.repeats=3 does not divide data.global_batch_size=64"),
        (["--model.modle", "resnet50"], r"'model\.modle' is not an option"),
        (["--trainer.precision", "half"], r"trainer\.precision=half is not supported"),
        (["--trainer.strategy", "dpp"], r"dpp.*Did you mean 'ddp'\?"),
        (["--trainer.gradient_clip_val", "-1"], "must be above 0"),
    ],
)
def test_what_fit_would_refuse_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        check_training(["--config", DEMO, *words], FOUR_CPUS, check_data=True)


def test_shards_that_only_the_nodes_see_may_be_left_unchecked() -> None:
    words = ["--config", DEMO, "--data.train", "/scratch/nowhere"]
    checked = check_training(words, FOUR_CPUS, check_data=False)
    assert len(checked.lines) == 1


def test_gpus_that_would_idle_are_noted() -> None:
    words = ["--config", DEMO, "--trainer.accelerator", "cpu"]
    checked = check_training(words, EIGHT_GPUS, check_data=False)
    assert checked.lines[-1] == "note: trainer.accelerator=cpu leaves the job's GPUs idle"


def test_a_run_that_goes_on_keeps_its_name(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo-x"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(Path(DEMO).read_text())
    words = ["--run_dir", str(run_dir), "--ckpt_path", "auto"]
    checked = check_training(words, FOUR_CPUS, check_data=False)
    assert (checked.name, checked.run_dir, checked.resumes) == ("demo-x", run_dir, True)


@pytest.mark.parametrize(
    ("said", "shape", "message"),
    [
        ({"num_nodes": 4}, FOUR_CPUS, r"trainer\.num_nodes=4, and the job has 2.*from --nodes"),
        ({"devices": 4}, EIGHT_GPUS, r"trainer\.devices=4, and the job has 8.*--gpus-per-node"),
        ({"devices": 1}, FOUR_CPUS, r"trainer\.devices=1, and the job has 2.*--tasks-per-node"),
        ({"accelerator": "gpu"}, FOUR_CPUS, "needs GPUs, and the job has none"),
        ({"sync_batchnorm": True}, FOUR_CPUS, "sync_batchnorm=true needs GPUs"),
    ],
)
def test_a_trainer_that_does_not_fit_the_job_is_refused(
    said: dict[str, object], shape: Shape, message: str
) -> None:
    with pytest.raises(UserInputError, match=message):
        check_trainer({**TRAINER, **said}, shape)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"num_nodes": 2, "devices": 2},
        {"devices": "2"},
        {"devices": -1},
        {"accelerator": "cpu"},
    ],
)
def test_a_trainer_that_says_the_same_is_right(said: dict[str, object]) -> None:
    check_trainer({**TRAINER, **said}, FOUR_CPUS)


def test_a_trainer_may_ask_on_gpus_for_what_only_they_have() -> None:
    check_trainer({**TRAINER, "sync_batchnorm": True, "accelerator": "gpu"}, EIGHT_GPUS)
