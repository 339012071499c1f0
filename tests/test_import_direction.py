"""Imports point one way, and rank, SLURM and the command line are each read in one place.

`errors ← models, data ← training ← cluster, report, bench ← cli` (each may import what stands to
its left, and nothing of what stands beside it).
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

import resscale

SOURCE = Path(resscale.__file__).parent
LAYERS = (
    ("errors", "_native"),
    ("models", "data"),
    ("training",),
    ("cluster", "report", "bench"),
    ("cli",),
)
LAYER = {part: number for number, parts in enumerate(LAYERS) for part in parts}
RANK_VARIABLES = {
    "RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID",
}  # fmt: skip


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module of the package by its path, parsed."""
    return {
        str(file.relative_to(SOURCE)): ast.parse(file.read_text())
        for file in sorted(SOURCE.rglob("*.py"))
    }


def part_of(path: str) -> str | None:
    """The part of the package that a file belongs to; None for the root's lazy names."""
    top = Path(path).parts[0].removesuffix(".py")
    if top == "__main__" or top.startswith("cli_"):
        return "cli"
    return None if top == "__init__" else top


def imported(tree: ast.Module) -> Iterator[str]:
    """The dotted names of ours that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("resscale"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            if node.module == "resscale":
                yield from (f"resscale.{alias.name}" for alias in node.names)
            elif node.module is not None and node.module.startswith("resscale."):
                yield node.module


def against_the_direction(path: str, tree: ast.Module) -> list[str]:
    """The imports of a module that point the wrong way."""
    own = part_of(path)
    wrong = []
    for name in imported(tree):
        parts = name.split(".")
        if len(parts) == 1 or parts[1] == "__version__":
            continue
        lazy = resscale._HOMES.get(parts[1])
        other = lazy.split(".")[1] if lazy else part_of(parts[1])
        assert other in LAYER, f"{path} imports {name}: which layer is that?"
        if own is not None and other != own and LAYER[other] >= LAYER[own]:
            wrong.append(name)
    return wrong


def test_every_module_belongs_to_a_layer() -> None:
    found = {part_of(path) for path in modules()} - {None}
    assert found <= set(LAYER)
    assert {"errors", "models", "data", "training", "cluster", "cli"} <= found


@pytest.mark.parametrize("path", modules())
def test_a_module_imports_only_what_stands_before_it(path: str) -> None:
    assert against_the_direction(path, modules()[path]) == []


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("errors.py", "import resscale.data.order"),
        ("models/resnet.py", "from resscale.data.order import EpochOrder"),
        ("data/order.py", "from resscale.models import ResNet"),
        ("data/order.py", "def f():\n    from resscale.training.rundir import RunDir"),
        ("data/order.py", "from resscale import create_model"),
        ("training/rundir.py", "from resscale.cluster.environment import Launch"),
        ("training/rundir.py", "from resscale import cli"),
        ("cluster/environment.py", "import resscale.report"),
        ("cluster/environment.py", "from resscale.cli_train import Session"),
    ],
)
def test_an_import_against_the_direction_would_be_found(path: str, code: str) -> None:
    assert len(against_the_direction(path, ast.parse(code))) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("data/order.py", "from resscale.data.permutation import Int64"),
        ("training/classifier.py", "from resscale.models import create_model"),
        ("data/builtin.py", "from resscale import __version__"),
        ("cli_train.py", "from resscale.cli_errors import explain_parser_error"),
    ],
)
def test_an_import_along_the_direction_is_allowed(path: str, code: str) -> None:
    assert against_the_direction(path, ast.parse(code)) == []


def test_only_the_command_line_reads_the_arguments_of_the_process() -> None:
    readers = {
        path
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr == "argv" and _is_sys(node.value))
        or (
            isinstance(node, ast.ImportFrom)
            and node.module == "sys"
            and any(alias.name == "argv" for alias in node.names)
        )
    }
    assert readers == {"cli.py"}


def test_only_one_module_reads_rank_and_slurm_variables() -> None:
    readers = {
        path
        for path, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and (node.value in RANK_VARIABLES or node.value.startswith("SLURM_"))
    }
    assert readers == {"cluster/environment.py"}


def _is_sys(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "sys"
