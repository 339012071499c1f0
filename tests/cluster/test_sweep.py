"""A sweep's runs: every combination, each with a name and arguments of its own."""

from pathlib import Path

import pytest

from resscale.cluster.sweep import SweepTask, plan_sweep, write_arguments
from resscale.errors import UserInputError


def test_each_combination_is_a_run_and_the_last_key_varies_fastest() -> None:
    tasks = plan_sweep(["seed_everything=0,1", "model.optimizer.lr=0.1,0.2,0.4"])
    assert len(tasks) == 6  # 2 × 3
    assert tasks[4] == SweepTask(
        4, "4-seed_everything=1-lr=0.2", ("--seed_everything=1", "--model.optimizer.lr=0.2")
    )


def test_lists_are_one_value() -> None:
    tasks = plan_sweep(["model.schedule.step_at_epochs=[30,60],[40,80]"])
    assert [task.arguments[0].partition("=")[2] for task in tasks] == ["[30,60]", "[40,80]"]


def test_configurations_are_swept_by_their_names() -> None:
    tasks = plan_sweep(["config=a/resnet18.yaml,a/resnet50.yaml"])
    assert [task.label for task in tasks] == ["0-resnet18", "1-resnet50"]
    assert tasks[1].arguments == ("--config=a/resnet50.yaml",)


def test_labels_are_sorted_as_the_runs_are_and_fit_for_folders() -> None:
    labels = [
        task.label for task in plan_sweep([f"data.train={','.join(f'a/{i}' for i in range(11))}"])
    ]
    assert labels == sorted(labels)
    assert labels[0] == "00-train=a_0"
    assert not any("/" in label for label in labels)


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["seed"], "must read KEY=a,b,c"),
        (["seed="], "must read KEY=a,b,c"),
        (["seed=1,,2"], "must read KEY=a,b,c"),
        (["=1,2"], "must read KEY=a,b,c"),
        (["seed=1,2,1"], "names a value twice"),
        (["seed=1", "seed=2"], "--sweep seed is given twice"),
        (["run_dir=a,b"], "has a directory of its own already"),
        ([f"a={','.join(map(str, range(40)))}", f"b={','.join(map(str, range(40)))}"],
         "makes 1600 runs, and 1000 is the most"),  # 40 × 40
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_refused(sweeps: list[str], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        plan_sweep(sweeps)


def test_arguments_stand_one_a_line(tmp_path: Path) -> None:
    (task,) = plan_sweep(["name=two words"])
    file = write_arguments(tmp_path, task, ["--run_dir", "a b"])
    assert file == tmp_path / "0.args"
    assert file.read_text() == "--name=two words\n--run_dir\na b\n"


def test_an_argument_with_a_line_break_is_refused(tmp_path: Path) -> None:
    task = SweepTask(0, "0", ("--a=b\nc",))
    with pytest.raises(UserInputError, match="has a line break in it"):
        write_arguments(tmp_path, task, [])
