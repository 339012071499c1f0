"""Finding run directories, and what is read of each: state, seed, faults, damage."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from resscale.errors import DataFormatError, UserInputError
from resscale.report.runs import find_runs, flatten, load_run
from resscale.training.rundir import RunDir


@pytest.fixture
def runs(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder with two runs, a folder that is none, and a file."""
    for name in ("paper/plain20", "paper/resnet20"):
        make_run(name)
    (tmp_path / "paper" / "notes").mkdir()
    (tmp_path / "paper" / "plain20.log").touch()
    return tmp_path / "paper"


def test_a_folder_of_runs_stands_for_its_children(runs: Path) -> None:
    assert find_runs([str(runs)]) == [(None, runs / "plain20"), (None, runs / "resnet20")]


def test_a_run_named_twice_counts_once(runs: Path) -> None:
    found = find_runs([str(runs / "resnet20"), f"{runs}/../paper/resnet20/", str(runs)])
    assert found == [(None, runs / "resnet20"), (None, runs / "plain20")]


def test_a_label_names_a_run_or_all_of_a_folder(runs: Path) -> None:
    assert find_runs([f"a  b={runs}"]) == [("a b", runs / "plain20"), ("a b", runs / "resnet20")]


def test_a_directory_with_an_equals_sign_is_a_path(make_run: Callable[..., Path]) -> None:
    path = make_run("lr=0.1")
    assert find_runs([str(path)]) == [(None, path)]
    assert find_runs([f"low={path}"]) == [("low", path)]


def test_a_run_with_two_labels_is_refused(runs: Path) -> None:
    with pytest.raises(UserInputError, match=r"plain20 is named twice, as 'a' and 'b'.*once\."):
        find_runs([f"a={runs}/plain20", f"b={runs}/plain20"])


@pytest.mark.parametrize("argument", ["=runs/a", "label=", " =runs/a"])
def test_half_a_label_is_refused(argument: str) -> None:
    with pytest.raises(UserInputError, match=r"must read LABEL=RUN"):
        find_runs([argument])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet2", r"there is no run .*resnet2; .*Did you mean '.*/paper/resnet20'\?"),
        ("notes", r"notes is no run directory and holds none: a run has a config.yaml, metrics"),
        ("plain20.log", r"plain20.log is a file; name a run directory, .*: .*/paper$"),
        ("none/run", r"there is no run .*none/run; name a directory that `resscale fit` made\.$"),
    ],
)
def test_what_is_no_run_is_refused(runs: Path, name: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        find_runs([str(runs / name)])


def test_an_empty_directory_has_the_runs_beside_it_as_its_near_misses(runs: Path) -> None:
    (runs / "resnet2").mkdir()
    with pytest.raises(UserInputError, match=r"is no run directory .*mean '.*/paper/resnet20'\?"):
        find_runs([str(runs / "resnet2")])


def test_a_finished_run(make_run: Callable[..., Path]) -> None:
    run = load_run(make_run(epochs=3, seed=7))
    assert (run.state, run.seed, run.epochs_done, run.epochs_planned) == ("done", "7", 3, 3)
    assert run.config["model.optimizer.lr"] == 0.1
    assert run.images_per_s == pytest.approx(100.0)
    assert run.data_wait_pct == pytest.approx(25.0)
    assert (run.bad_samples, run.resumed_at) == (0, ())


def test_a_preempted_run_says_where_it_stands(make_run: Callable[..., Path]) -> None:
    path = make_run(
        epochs=3, options={"trainer.max_epochs": 20}, summary={"status": "preempted", "epoch": 3}
    )
    assert load_run(path).state == "preempted at epoch 3 of 20"


def test_the_table_is_ahead_of_the_summary_of_a_running_run(make_run: Callable[..., Path]) -> None:
    run = load_run(make_run(epochs=5, summary={"status": "running", "epoch": 2}))
    assert run.epochs_done == 4  # four behind it, the fifth may be under way


def test_without_planned_epochs_the_state_names_none(make_run: Callable[..., Path]) -> None:
    path = make_run(options={"trainer.max_epochs": -1}, summary={"status": "stopped", "epoch": 3})
    assert load_run(path).state == "stopped at epoch 3"


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    RunDir(tmp_path).config.write_text("seed_everything: 3\n")
    run = load_run(tmp_path)
    assert (run.state, run.seed, run.images_per_s) == ("no summary yet at epoch 0", "3", None)
    assert all(curve == {} for curve in run.curves.values())


def test_the_time_is_that_of_the_newest_entry(make_run: Callable[..., Path]) -> None:
    run = RunDir(make_run())
    for number, file in enumerate((run.summary, run.metrics, run.config)):
        os.utime(file, (1_000_000_000 - 30 * 86_400 * number,) * 2)
    assert load_run(run.path).last_written.startswith("2001-09-0")  # 10⁹ s: the 9th, in UTC


def test_faults_are_counted_from_the_ledger(make_run: Callable[..., Path]) -> None:
    run = RunDir(make_run(summary={"bad_samples": 1}))
    for key in ("a", "b"):  # one of them since the summary was written
        run.append_event("bad_sample", key=key)
    run.append_event("resumed", path="x.ckpt", step=12)
    run.append_event("resumed", path="y.ckpt", step=25)
    loaded = load_run(run.path)
    assert (loaded.bad_samples, loaded.resumed_at) == (2, (12, 25))


def test_nested_keys_are_flattened() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None, "f": {}}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [1, 2], "e": None, "f": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", r"config.yaml is not valid YAML"),
        ("- a\n", r"config.yaml is no mapping"),
        ("a: \xff", r"config.yaml is not valid"),
    ],
)
def test_a_damaged_configuration_is_refused(tmp_path: Path, text: str, message: str) -> None:
    RunDir(tmp_path).config.write_text(text, encoding="latin-1")
    with pytest.raises(DataFormatError, match=message):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no mapping of names to values"),
        ('{"val_top1": "0.9"}', "has val_top1='0.9', which is no number"),
        ('{"num_macs": [1]}', r"has num_macs=\[1\], which is no number"),
    ],
)
def test_a_damaged_summary_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataFormatError, match=rf"summary\.json {message}; .* leave the run out"):
        load_run(tmp_path)


def test_a_summary_without_values_is_one_that_has_none_yet(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"status": "running", "val_top1": null}')
    assert load_run(tmp_path).state == "running at epoch 0"
