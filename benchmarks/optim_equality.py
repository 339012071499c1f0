"""Compare LARS and LAMB with timm's: random weights and gradients, 50 steps.

    pip install --no-deps timm==1.0.31     # in an environment of its own, beside resscale
    python benchmarks/optim_equality.py

Prints, per optimizer, the largest difference of a weight over the largest weight of its tensor, and
where three steps on four numbers end, which the tests have written down. timm's LAMB clips the norm
of all gradients together itself; here torch does, as under `trainer.gradient_clip_val`. timm's
models are not needed, nor is torchvision, which its package imports: only its optimizers are.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resscale.training.lamb import Lamb
from resscale.training.lars import Lars

SHAPES = ((64, 3, 7, 7), (256, 64, 1, 1), (10, 512), (64,))
FEW_WEIGHTS = ([1.0, -2.0, 3.0], [0.5])
FEW_GRADIENTS = (
    ([0.3, -0.1, 0.2], [0.4]),
    ([-0.2, 0.6, 0.1], [-0.3]),
    ([0.5, 0.05, -0.4], [0.2]),
)


def timms(module: str, name: str) -> Any:
    """Return an optimizer of timm's without importing all of timm."""
    if "timm" not in sys.modules:
        found = importlib.util.find_spec("timm")
        assert found is not None, "timm is not installed"
        assert found.origin is not None
        for package in ("timm", "timm.optim"):
            bare = types.ModuleType(package)
            bare.__path__ = [str(Path(found.origin).parent / package.partition(".")[2])]
            sys.modules[package] = bare
    return getattr(importlib.import_module(f"timm.optim.{module}"), name)


def train(
    kind: Callable[..., Optimizer],
    weights: list[Tensor],
    gradients: list[list[Tensor]],
    max_norm: float | None = None,
    **options: Any,
) -> list[Tensor]:
    """Step; the last parameter does not decay. Return the weights."""
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    own = {"adapt": False} if kind in (Lars, Lamb) else {}
    groups: list[dict[str, Any]] = [
        {"params": parameters[:-1], "weight_decay": 0.02},
        {"params": parameters[-1:], "weight_decay": 0.0, **own},
    ]
    optimizer = kind(groups, **options)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def main() -> None:
    """Train with both, and print."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    gradients = [
        [0.02 * number * torch.randn(shape, generator=generator) for shape in SHAPES]
        for number in range(1, 51)
    ]
    lars = {"lr": 1.0, "momentum": 0.9, "nesterov": True}
    their_lamb, their_lars = timms("lamb", "Lamb"), timms("lars", "Lars")
    pairs = {
        "lamb": ((their_lamb, {"lr": 5e-3, "max_grad_norm": None}), (Lamb, {"lr": 5e-3})),
        "lamb, norm clipped to 1": (
            (their_lamb, {"lr": 5e-3, "max_grad_norm": 1.0}),
            (Lamb, {"lr": 5e-3, "max_norm": 1.0}),
        ),
        "lars": ((their_lars, lars), (Lars, lars)),
    }
    for name, ((theirs, their_options), (ours, our_options)) in pairs.items():
        one = train(theirs, weights, gradients, **their_options)
        other = train(ours, weights, gradients, **our_options)
        worst = max(
            ((a - b).abs().max() / a.abs().max()).item() for a, b in zip(one, other, strict=True)
        )
        print(f"{name}: {worst:.1e}")
    few = [torch.tensor(values) for values in FEW_WEIGHTS]
    steps = [[torch.tensor(values) for values in step] for step in FEW_GRADIENTS]
    for name, kind, options in (
        ("lamb", their_lamb, {"lr": 0.01, "max_grad_norm": None}),
        ("lars", their_lars, {**lars, "lr": 2.0, "trust_coeff": 0.01}),
    ):
        ends = [value for tensor in train(kind, few, steps, **options) for value in tensor.tolist()]
        print(f"timm's {name}, three steps: {', '.join(f'{end:.7f}' for end in ends)}")


if __name__ == "__main__":
    main()
