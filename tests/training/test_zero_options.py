"""Wrong options of ZeRO, and DeepSpeed missing: one sentence and exit code 2, before a run begins.

The command runs in processes of their own: DeepSpeed is imported once in a process, for one device.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resscale.errors import UserInputError
from resscale.training.zero_options import (
    check_config_keys,
    check_options,
    check_zero_section,
    overlay,
)

CLASS = "--trainer.strategy=resscale.training.zero.ZeRO"
# As where the extra is not installed: the import system finds nothing under that name.
WITHOUT_DEEPSPEED = """
import sys
sys.modules["deepspeed"] = None
from resscale.cli import main
sys.exit(main(sys.argv[1:]))
"""


def fit(
    repository: Path, run_dir: Path, *arguments: str, program: tuple[str, ...] = ("-m", "resscale")
) -> str:
    """Run `fit`, want exit code 2, one line and no run directory; return the line."""
    demo = ("--config=configs/demo.yaml", f"--run_dir={run_dir}", "--trainer.accelerator=cpu")
    done = subprocess.run(
        [sys.executable, *program, "fit", *demo, *arguments],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert not run_dir.exists()
    return done.stderr.removeprefix("resscale: ").removesuffix("\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--trainer.strategy=deepspeed_2", "--trainer.devices=2"),
        ("--config=configs/strategy/deepspeed_2_offload.yaml",),
    ],
    ids=["by name", "by class"],
)
def test_without_deepspeed_the_command_that_installs_it_is_named(
    repository: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    said = fit(repository, tmp_path / "run", *arguments, program=("-c", WITHOUT_DEEPSPEED))
    assert said.startswith("the strategy needs DeepSpeed, which is not installed (")
    assert said.endswith('): pip install -e ".[deepspeed]"')


def test_another_device_in_the_environment_is_named(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    said = fit(
        repository, tmp_path / "run", "--trainer.strategy=deepspeed_1", "--trainer.devices=2"
    )
    assert said == (
        "trainer.accelerator is cpu, but the environment variable DS_ACCELERATOR is cuda: "
        "set it to cpu, or unset it."
    )


def test_what_the_class_refuses_is_said_in_its_words(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")
    unknown = '--trainer.strategy.config={"zero_optimization":{"overlap_com":true}}'
    assert fit(repository, tmp_path / "run", CLASS, unknown) == (
        "strategy ZeRO: config.zero_optimization.overlap_com=True: Extra inputs are not permitted. "
        "Did you mean 'overlap_comm'?"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stage": 0}, "stage=0 must be 1, 2 or 3."),
        (
            {"stage": 2, "offload_parameters": True},
            "offload_parameters=true needs stage 3, and stage is 2: below it every rank uses all "
            "weights at each step.",
        ),
        (
            {"reduce_bucket_size": 0},
            "reduce_bucket_size=0 must be at least 1 element; 6553600 are 25 MiB.",
        ),
        (
            {"config": {"bf16": {"enabled": True}}},
            "config says bf16; say it by trainer.precision.",
        ),
        (
            {"config": {"gradient_clipping": 1.0}},
            "config says gradient_clipping; say it by trainer.gradient_clip_val.",
        ),
        (
            {"config": {"zero_optimization": {"stage": 3}}},
            "config says the stage; say it by the option stage.",
        ),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], said: str) -> None:
    whole = {"stage": 1, "offload_parameters": False, "reduce_bucket_size": 1, "config": {}}
    check_options(**whole)  # legal
    with pytest.raises(UserInputError) as caught:
        check_options(**{**whole, **options})
    assert str(caught.value) == f"strategy ZeRO: {said}"


def test_deepspeed_checks_the_zero_section_with_the_users_keys_laid_over_ours() -> None:
    pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")
    ours = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    check_zero_section(ours, {"offload_optimizer": {"pin_memory": True}})
    with pytest.raises(UserInputError, match=r"zero_optimization: .*Partial offloading only"):
        check_zero_section(ours, {"offload_optimizer": {"ratio": 0.5}})
    with pytest.raises(UserInputError, match=r"reduce_bucket_size=-1: Input should be greater"):
        check_zero_section(ours, {"reduce_bucket_size": -1})
    assert ours == {"stage": 2, "offload_optimizer": {"device": "cpu"}}


def test_a_key_that_deepspeed_never_asks_for_is_refused() -> None:
    pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")
    # Some that it looks up in different ways.
    known = {"wall_clock_breakdown": True, "flops_profiler": {"enabled": True}, "aio": {}}
    check_config_keys(known)
    with pytest.raises(UserInputError) as caught:
        check_config_keys({**known, "wall_clock_breakdwn": True})
    assert str(caught.value) == (
        "strategy ZeRO: config.wall_clock_breakdwn is no key that DeepSpeed knows; correct it or "
        "leave it out. Did you mean 'wall_clock_breakdown'?"
    )
    with pytest.raises(UserInputError, match=r"cannot read config.*communication_data_type"):
        check_config_keys({"communication_data_type": "fp99"})


def test_settings_are_laid_over_others_key_by_key() -> None:
    base: dict[str, Any] = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    overlay(base, {"a": {"c": {"f": 4}}, "e": {"g": 5}, "h": 6})
    assert base == {"a": {"b": 1, "c": {"d": 2, "f": 4}}, "e": {"g": 5}, "h": 6}
