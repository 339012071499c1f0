"""torch.compile in place: the same names of weights, the same numbers."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from parity import load_outcome, loss_difference, tensor_difference

from resscale import create_model
from resscale.cli import main
from resscale.errors import UserInputError
from resscale.training.compiling import compile_network

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)


def test_a_compiled_network_has_the_names_and_the_outputs_of_the_eager_one() -> None:
    torch.manual_seed(0)
    eager = create_model("resnet8_cifar", 10)
    compiled = copy.deepcopy(eager)
    compile_network(compiled, "aot_eager")
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(compiled(images), eager(images))
    assert list(compiled.state_dict()) == list(eager.state_dict())


def test_a_copy_of_a_compiled_network_is_eager() -> None:
    # The average of weights is such a copy: nobody asked for it to be compiled.
    network = create_model("resnet8_cifar", 10)
    compile_network(network, "eager")
    assert copy.deepcopy(network)._compiled_call_impl is None


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserInputError, match=r"model.compile=inducto.*Did you mean 'inductor'"):
        compile_network(create_model("resnet8_cifar", 10), "inducto")


def test_inductor_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserInputError, match=r"needs a C\+\+ compiler"):
        compile_network(create_model("resnet8_cifar", 10), "inductor")


@pytest.fixture
def fit(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train in this process, 5 steps an epoch; return the run directory."""
    monkeypatch.chdir(repository)
    options = (
        *("--config=configs/demo.yaml", "--model.model=resnet8_cifar", "--model.optimizer.lr=0.01"),
        *("--model.schedule.name=constant", "--model.schedule.warmup_epochs=0", "--data.val=null"),
        *("--data.num_workers=0", "--data.log_sample_ids=true", "--trainer.accelerator=cpu"),
        *("--trainer.limit_train_batches=5", "--trainer.log_every_n_steps=1"),
        "--checkpoint.keep_last=9",
    )

    def run(name: str, *more: str) -> Path:
        assert main(["fit", *options, f"--run_dir={tmp_path / name}", *more]) == 0
        return tmp_path / name

    return run


def take_num_graphs() -> int:
    """Graphs that torch has compiled since the last call."""
    counters = torch._dynamo.utils.counters
    count = int(counters["stats"]["unique_graphs"])
    torch.compiler.reset()
    counters.clear()
    return count


@pytest.mark.parametrize(
    ("before", "behind"),
    [("aot_eager", "null"), ("null", "aot_eager")],
    ids=["compiled to eager", "eager to compiled"],
)
def test_compiled_and_eager_runs_go_on_from_each_others_checkpoints(
    fit: Callable[..., Path], before: str, behind: str
) -> None:
    two = "--trainer.max_epochs=2"
    take_num_graphs()
    first = fit("first", f"--model.compile={before}", "--trainer.max_epochs=1")
    assert take_num_graphs() == (1 if before == "aot_eager" else 0)
    path = first / "checkpoints" / "last.ckpt"
    whole = load_outcome(fit("whole", two))
    assert take_num_graphs() == 0
    resumed = load_outcome(fit("on", f"--model.compile={behind}", two, f"--ckpt_path={path}"))
    assert take_num_graphs() == (1 if behind == "aot_eager" else 0)
    assert sorted(resumed.losses) == [6, 7, 8, 9, 10]
    assert loss_difference(whole, resumed) < 1e-5
    states = [outcome.checkpoint["state_dict"] for outcome in (whole, resumed)]
    assert tensor_difference(*states) < 1e-4
    assert tensor_difference(whole.momentum, resumed.momentum) < 1e-4
