"""A run that goes on keeps its optimizer, and ends behind its checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch

from resscale.cli_resume import check_epochs, check_optimizer, explain_giving_up
from resscale.errors import UserInputError
from resscale.training.rundir import RunDir


def config(**optimizer: Any) -> dict[str, Any]:
    own = {"name": "sgd", "lr": 0.1, "weight_decay": 1e-4, "decay_norm_and_bias": False}
    return {"model": {"optimizer": {**own, **optimizer}}}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"name": "lars"}, r"with model.optimizer.name=sgd, now it is lars: .*--weights"),
        ({"name": "lamb"}, r"with model.optimizer.name=sgd, now it is lamb: .*--weights"),
        ({"name": "adamw"}, r"with model.optimizer.name=sgd, now it is adamw: .*--weights"),
        (
            {"decay_norm_and_bias": True},
            r"with model.optimizer.decay_norm_and_bias=false, now it is true: .*--weights",
        ),
    ],
)
def test_an_optimizer_with_another_state_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(UserInputError, match=words):
        check_optimizer({"config": config()}, config(**changed))


def test_numbers_of_the_optimizer_may_change() -> None:
    numbers = {"lr_scaling": "sqrt", "implementation": "fused"}
    check_optimizer({"config": config()}, config(lr=0.01, weight_decay=0.0, **numbers))


@pytest.mark.parametrize("state", [{}, {"config": None}, {"config": {"model": {}}}])
def test_a_checkpoint_that_does_not_say_is_taken(state: dict[str, Any]) -> None:
    check_optimizer(state, config(name="lars"))


def test_an_end_before_the_checkpoint_is_refused_with_one_that_is_not() -> None:
    # 66 steps of 22 per epoch are 3 epochs.
    with pytest.raises(UserInputError, match=r"max_epochs=2 .* 3 epochs .* set it to 3 or more"):
        check_epochs({"global_step": 66}, 2, 22)


@pytest.mark.parametrize("step", [0, 44, 65, 66])
def test_an_end_at_or_behind_the_checkpoint_is_taken(step: int) -> None:
    check_epochs({"global_step": step}, 3, 22)


def test_who_gives_up_hears_where_to_go_on(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert explain_giving_up(run, "resscale fit") == (
        f"given up; {tmp_path} holds no checkpoint yet."
    )
    run.checkpoints.mkdir()
    newest = run.checkpoints / "epoch-0001-step-00000022.ckpt"
    torch.save({"state_dict": {}}, newest)
    assert explain_giving_up(run, "resscale fit --run_dir x") == (
        f"given up; the newest checkpoint is {newest}\ngo on with:  resscale fit --run_dir x"
    )
