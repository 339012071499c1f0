"""Averaged weights in a checkpoint: loaded, refused, and what is said of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from resscale import create_model
from resscale.errors import UserInputError
from resscale.training.ema_checkpoint import EMA_KEY, explain_average, load_averaged
from resscale.training.ema_decay import EmaConfig


def a_state(name: str = "resnet8_cifar", classes: int = 10) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state = create_model(name, classes).state_dict()
    return {f"model.{key}": value + 1 for key, value in state.items()}


def test_the_averaged_weights_become_the_networks() -> None:
    network = create_model("resnet8_cifar", 10)
    state = a_state()
    loaded = load_averaged(network, {"state_dict": {}, EMA_KEY: state}, "some.ckpt")
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[f"model.{key}"])
    assert loaded.source == "some.ckpt (averaged weights)"
    assert loaded.num_tensors == len(state)


def test_a_checkpoint_without_averaged_weights_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"--use_ema=true: some\.ckpt holds no averaged"):
        load_averaged(create_model("resnet8_cifar", 10), {"state_dict": {}}, "some.ckpt")


def test_averaged_weights_without_a_checkpoint_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"name it with --ckpt_path FILE"):
        load_averaged(create_model("resnet8_cifar", 10), None, "None")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (a_state("resnet14_cifar"), r"some\.ckpt does not fit the model: .* unexpected"),
        (a_state(classes=7), r"some\.ckpt does not fit the model: .*fc\.weight: 7"),
    ],
)
def test_averaged_weights_of_another_network_are_refused(
    state: dict[str, Tensor], said: str
) -> None:
    network = create_model("resnet8_cifar", 10)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(UserInputError, match=said):
        load_averaged(network, {EMA_KEY: state}, "some.ckpt")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


WITH: dict[str, Any] = {EMA_KEY: {}}
WITHOUT: dict[str, Any] = {"state_dict": {}}


@pytest.mark.parametrize(
    ("config", "checkpoint", "said"),
    [
        (EmaConfig(), None, None),
        (EmaConfig(), WITHOUT, None),
        (
            EmaConfig(),
            WITH,
            "averaged weights: those of the checkpoint are dropped, ema.decay is not set",
        ),
        (EmaConfig(0.9999), None, "averaged weights: decay 0.9999, reached at update 89,990"),
        (EmaConfig(0.9999), WITH, "averaged weights: decay 0.9999, reached at update 89,990"),
        (
            EmaConfig(0.5, warmup=False),
            WITHOUT,
            "averaged weights: decay 0.5; the checkpoint has none, so the average begins with its "
            "weights",
        ),
    ],
)
def test_what_happens_to_the_average_is_said_in_one_line(
    config: EmaConfig, checkpoint: dict[str, Any] | None, said: str | None
) -> None:
    assert explain_average(config, checkpoint) == said
