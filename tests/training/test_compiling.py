"""torch.compile in place: the same names of weights, the same numbers."""

import copy
import shutil

import pytest
import torch

from resscale import create_model
from resscale.errors import UserInputError
from resscale.training.compiling import compile_network, is_compiled


def test_a_compiled_network_has_the_names_and_the_outputs_of_the_eager_one() -> None:
    torch.manual_seed(0)
    eager = create_model("resnet8_cifar", 10)
    compiled = copy.deepcopy(eager)
    compile_network(compiled, "aot_eager")
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(compiled(images), eager(images))
    assert list(compiled.state_dict()) == list(eager.state_dict())
    assert is_compiled(torch.nn.Sequential(compiled))
    assert not is_compiled(eager)
    assert not is_compiled(None)


def test_a_copy_of_a_compiled_network_is_eager() -> None:
    # The average of weights is such a copy: nobody asked for it to be compiled.
    network = create_model("resnet8_cifar", 10)
    compile_network(network, "eager")
    assert not is_compiled(copy.deepcopy(network))


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserInputError, match=r"model.compile=inducto.*Did you mean 'inductor'"):
        compile_network(create_model("resnet8_cifar", 10), "inducto")


def test_inductor_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserInputError, match=r"needs a C\+\+ compiler"):
        compile_network(create_model("resnet8_cifar", 10), "inductor")
