"""torch.compile in place: the same names of weights, the same numbers."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity import load_outcome, loss_difference, tensor_difference
from torch import nn

from resscale import create_model
from resscale.cli import main
from resscale.errors import UserInputError
from resscale.training.compiling import captures_graphs, check_graphs, compile_network

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


class Layer(nn.Module):
    """A convolution and its BatchNorm: torch compiles nothing of its own containers' code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm(self.conv(images))
        return normed


def test_each_size_of_image_is_compiled_once_and_not_at_each_step() -> None:
    network = Layer()
    compile_network(network, "eager")
    take_num_graphs()
    # Ten sizes (torch itself gives up at eight), two epochs of two steps each.
    for size in [*range(8, 18), *range(8, 18)]:
        for _ in range(2):
            network(torch.zeros(2, 1, size, size))
    assert take_num_graphs() == 10


def test_sizes_are_constants_of_what_is_compiled() -> None:
    network = Layer()
    compile_network(network, "eager")
    take_num_graphs()
    # With symbols for sizes, the second graph would serve the third size, too.
    for size in (8, 12, 16):
        network(torch.zeros(2, 1, size, size))
    assert take_num_graphs() == 3


def test_a_mode_is_one_of_inductors() -> None:
    network = create_model("resnet8_cifar", 10)
    with pytest.raises(UserInputError, match=r"reduce-overhed is not one of.*'reduce-overhead'"):
        compile_network(network, "inductor", "reduce-overhed")
    with pytest.raises(UserInputError, match=r"is a mode of inductor, and model.compile=eager"):
        compile_network(network, "eager", "max-autotune")
    with pytest.raises(UserInputError, match=r"add model.compile=inductor"):
        compile_network(network, None, "max-autotune")
    compile_network(network, None)
    assert network._compiled_call_impl is None


@pytest.mark.parametrize(
    ("backend", "mode", "captures"),
    [
        ("inductor", "reduce-overhead", True),
        ("inductor", "max-autotune", True),
        ("cudagraphs", None, True),
        ("inductor", "max-autotune-no-cudagraphs", False),
        ("inductor", None, False),
        (None, None, False),
    ],
)
def test_what_records_cuda_graphs_is_known(
    backend: str | None, mode: str | None, captures: bool
) -> None:
    assert captures_graphs(backend, mode) == captures


def test_cuda_graphs_are_refused_where_addresses_change() -> None:
    legal = {"device": "cuda", "deepspeed": False, "accumulate": 1}
    check_graphs("inductor", "reduce-overhead", **legal)  # type: ignore[arg-type]
    for changed, words in (
        ({"device": "cpu"}, "compile_mode=reduce-overhead records CUDA graphs.*runs on cpu"),
        ({"deepspeed": True}, "weights and gradients do not stay where they are"),
        ({"accumulate": 4}, "overwrites the gradients that 4 micro-batches"),
    ):
        with pytest.raises(UserInputError, match=words):
            check_graphs("inductor", "reduce-overhead", **{**legal, **changed})  # type: ignore[arg-type]
        check_graphs("inductor", None, **{**legal, **changed})  # type: ignore[arg-type]


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


def test_growing_images_are_compiled_once_a_size(fit: Callable[..., Path]) -> None:
    take_num_graphs()
    sizes = ("--data.image_size=24", "--data.progressive.from_size=8")
    sizes += ("--data.progressive.until_epoch=2", "--data.progressive.multiple=8")
    few = ("--data.global_batch_size=16", "--trainer.limit_train_batches=2")
    crop = ("--data.train_crop=random_resized", "--trainer.max_epochs=4")
    fit("growing", "--model.compile=eager", *sizes, *few, *crop)
    # 8, 16 and 24 pixels, in four epochs of two steps
    assert take_num_graphs() == 3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet8_cifar", {"drop_path": 0.1, "blurpool": True}),
        ("resnet8_cifar", {"se": 4, "preact": True}),
    ],
)
def test_a_network_is_one_graph_without_breaks(name: str, options: dict[str, Any]) -> None:
    network = create_model(name, 10, **options)
    compile_network(network, "eager")
    take_num_graphs()
    network(torch.zeros(2, 3, 32, 32))
    assert not torch._dynamo.utils.counters["graph_break"]
    assert take_num_graphs() == 1


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
