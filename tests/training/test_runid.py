"""Naming runs: what the digest depends on, and which run is gone on with."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from resscale.errors import UserInputError
from resscale.training.rundir import RunDir
from resscale.training.runid import choose_run_dir, config_digest, refuse_used

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "model": {"model": "resnet50", "optimizer": {"lr": 0.1}},
    "data": {"train": "shards", "global_batch_size": 256},
    "trainer": {"max_epochs": 90, "devices": 8, "precision": "bf16-mixed"},
}


def a_run(runs: Path, name: str, status: str | None, age_s: float = 0.0) -> Path:
    """A run directory whose summary was written `age_s` seconds ago; None: without a summary."""
    path = runs / name
    path.mkdir(parents=True)
    if status is not None:
        RunDir(path).write_summary({"status": status})
        then = RunDir(path).summary.stat().st_mtime - age_s
        os.utime(RunDir(path).summary, (then, then))
    return path


def with_value(section: str, name: str, value: object) -> dict[str, Any]:
    """The configuration with one value changed."""
    if section:
        return {**CONFIG, section: {**CONFIG[section], name: value}}
    return {**CONFIG, name: value}


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("", "run_dir"), ("", "runs_dir"), ("", "ckpt_path"), ("", "config"), ("", "output"),
        ("", "expected"), ("", "device_prefetch"),
        ("trainer", "devices"), ("trainer", "num_nodes"), ("trainer", "accelerator"),
        ("trainer", "strategy"), ("trainer", "logger"), ("trainer", "log_every_n_steps"),
    ],
)  # fmt: skip
def test_the_digest_ignores_where_and_on_what_a_run_runs(section: str, name: str) -> None:
    assert config_digest(with_value(section, name, "other")) == config_digest(CONFIG)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("", "seed_everything", 1),
        ("model", "model", "resnet18"),
        ("model", "optimizer", {"lr": 0.2}),
        ("data", "train", "other"),
        ("data", "global_batch_size", 512),
        ("trainer", "max_epochs", 91),
        ("trainer", "precision", "32-true"),
    ],
)
def test_the_digest_changes_with_what_is_trained(section: str, name: str, value: object) -> None:
    assert config_digest(with_value(section, name, value)) != config_digest(CONFIG)


def test_the_digest_is_six_hex_digits_whatever_the_order_of_keys() -> None:
    turned = {name: CONFIG[name] for name in reversed(CONFIG)}
    assert re.fullmatch(r"[0-9a-f]{6}", config_digest(CONFIG))
    assert config_digest(turned) == config_digest(CONFIG)


def test_a_new_run_is_named_after_its_config_the_date_and_the_digest(tmp_path: Path) -> None:
    path = choose_run_dir(tmp_path, "demo", "abc123", job_id=None, resume=False)
    assert path.parent == tmp_path
    assert re.fullmatch(r"demo-\d{8}-\d{6}-abc123", path.name)
    assert not path.exists()


def test_two_runs_in_the_same_second_get_two_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "20261123-101500")
    names = []
    for _ in range(3):
        path = choose_run_dir(tmp_path, "demo", "abc123", job_id=None, resume=False)
        path.mkdir()
        names.append(path.name.removeprefix("demo-20261123-101500-"))
    assert names == ["abc123", "abc123-2", "abc123-3"]


def test_ranks_of_a_job_agree_on_a_name_without_a_clock(tmp_path: Path) -> None:
    chosen = []
    for _ in range(2):
        path = choose_run_dir(tmp_path, "demo", "abc123", job_id="job7", shared=True)
        path.mkdir(exist_ok=True)  # rank 0 was faster
        chosen.append(path.name)
    assert chosen == ["demo-job7-abc123"] * 2


def test_a_second_run_of_one_process_in_a_job_has_a_number(tmp_path: Path) -> None:
    (tmp_path / "demo-job7-abc123").mkdir()
    path = choose_run_dir(tmp_path, "demo", "abc123", job_id="job7")
    assert path.name == "demo-job7-abc123-2"


def test_a_job_goes_on_with_its_own_run_and_not_with_a_newer_one(tmp_path: Path) -> None:
    own = a_run(tmp_path, "demo-job7-abc123", "preempted", age_s=50)
    a_run(tmp_path, "demo-job8-abc123", "preempted", age_s=10)
    assert choose_run_dir(tmp_path, "demo", "abc123", job_id="job7", resume=True) == own


def test_a_new_job_goes_on_with_what_another_has_left_where_asked(tmp_path: Path) -> None:
    left = a_run(tmp_path, "demo-job7-abc123", "preempted")
    assert choose_run_dir(tmp_path, "demo", "abc123", job_id="job9", resume=True) == left


def test_a_requeued_job_never_takes_another_s_run(tmp_path: Path) -> None:
    # It was stopped before it had begun: there is nothing of its own yet.
    a_run(tmp_path, "demo-job8-abc123", "preempted")
    path = choose_run_dir(tmp_path, "demo", "abc123", job_id="job7", is_restart=True, resume=True)
    assert path.name == "demo-job7-abc123"


def test_resume_takes_the_newest_unfinished_run_of_this_configuration(tmp_path: Path) -> None:
    a_run(tmp_path, "demo-20260101-000000-abc123", "preempted", age_s=50)
    newest = a_run(tmp_path, "demo-20260102-000000-abc123", "failed", age_s=40)
    a_run(tmp_path, "demo-20260103-000000-abc123", "done", age_s=30)
    a_run(tmp_path, "demo-20260104-000000-ffffff", "preempted", age_s=20)  # another recipe
    a_run(tmp_path, "other-20260105-000000-abc123", "preempted", age_s=10)  # another name
    a_run(tmp_path, "demo-20260106-000000-abc123", None)  # never got as far as a summary
    found = choose_run_dir(tmp_path, "demo", "abc123", job_id=None, resume=True)
    assert found == newest


@pytest.mark.parametrize("status", ["running", "preempted", "failed", "stopped"])
def test_a_run_that_is_not_done_is_unfinished(tmp_path: Path, status: str) -> None:
    path = a_run(tmp_path, "demo-20260101-000000-abc123", status)
    assert choose_run_dir(tmp_path, "demo", "abc123", job_id=None, resume=True) == path


def test_resume_begins_anew_where_nothing_is_unfinished(tmp_path: Path) -> None:
    old = a_run(tmp_path, "demo-20260101-000000-abc123", "done")
    found = choose_run_dir(tmp_path, "demo", "abc123", job_id=None, resume=True)
    assert found != old
    assert not found.exists()
    nowhere = choose_run_dir(tmp_path / "no", "demo", "abc123", job_id=None, resume=True)
    assert nowhere.parent == tmp_path / "no"


def test_a_new_run_does_not_take_an_unfinished_one(tmp_path: Path) -> None:
    old = a_run(tmp_path, "demo-20260101-000000-abc123", "preempted")
    assert choose_run_dir(tmp_path, "demo", "abc123", job_id=None, resume=False) != old


def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    used = a_run(tmp_path, "used", "done")
    with pytest.raises(UserInputError, match=r"used holds a run already; add --ckpt_path auto"):
        refuse_used(used)


def test_a_directory_without_a_run_is_fine(tmp_path: Path) -> None:
    refuse_used(tmp_path)
    refuse_used(tmp_path / "nothing")
