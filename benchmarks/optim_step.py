"""What a step of each optimizer costs, beside torch's SGD in a plain loop.

    OMP_NUM_THREADS=1 python benchmarks/optim_step.py
    python benchmarks/optim_step.py --device cuda --model resnet50

Prints a Markdown table: the time of a step over the net's parameters with gradients at hand, and
its ratio to torch's SGD, one parameter after the other. On a CPU it is the process's CPU time, so
that others on the machine disturb little; on a GPU the time between two events on its stream, and
the CPU time that launching took. All take turns, so that they meet the same machine.

`LarsLoop` and `LambLoop` are the papers' algorithms written down plainly, one tensor at a time:
what LARS and LAMB in lists of tensors are compared with, here and in the tests.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resscale import create_model
from resscale.training.optim import OptimizerConfig, build_optimizer


class LarsLoop(Optimizer):
    """LARS (You et al. 2017, algorithm 1), one tensor at a time; the options of `Lars`."""

    def __init__(self, params: Any, lr: float, **options: Any) -> None:
        plain = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "adapt": True}
        more = {"trust_coefficient": 0.001, "eps": 1e-8}
        super().__init__(params, {"lr": lr, **plain, **more, **options})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters."""
        for group in self.param_groups:
            decay, momentum = group["weight_decay"], group["momentum"]
            for w in group["params"]:
                d = w.grad + decay * w
                if group["adapt"]:
                    of_weight, of_gradient = _norm(w), _norm(w.grad)
                    bound = of_gradient + decay * of_weight + group["eps"]
                    ratio = group["trust_coefficient"] * of_weight / bound
                    some = (of_weight > 0) & (of_gradient > 0)
                    d = d * torch.where(some, ratio, 1.0).float()
                v = self.state[w].setdefault("momentum_buffer", torch.zeros_like(w))
                v.mul_(momentum).add_(d)
                w.sub_(group["lr"] * (d + momentum * v if group["nesterov"] else v))


class LambLoop(Optimizer):
    """LAMB (You et al. 2019, algorithm 2), one tensor at a time; the options of `Lamb`."""

    def __init__(self, params: Any, lr: float, **options: Any) -> None:
        plain = {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0, "adapt": True}
        super().__init__(params, {"lr": lr, **plain, **options})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the parameters."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for w in group["params"]:
                state = self.state[w]
                if not state:
                    state.update(t=0, m=torch.zeros_like(w), v=torch.zeros_like(w))
                state["t"] += 1
                m, v, t = state["m"], state["v"], state["t"]
                m.mul_(beta1).add_((1 - beta1) * w.grad)
                v.mul_(beta2).add_((1 - beta2) * w.grad * w.grad)
                u = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
                u = u + group["weight_decay"] * w
                if group["adapt"]:
                    of_weight, of_move = _norm(w), _norm(u)
                    some = (of_weight > 0) & (of_move > 0)
                    u = u * torch.where(some, of_weight / of_move, 1.0).float()
                w.sub_(group["lr"] * u)


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64)


def contenders(device: torch.device) -> dict[str, Callable[[nn.Module], Optimizer]]:
    """Return what is compared, torch's SGD first; each builds an optimizer over a net."""

    def ours(**options: Any) -> Callable[[nn.Module], Optimizer]:
        config = OptimizerConfig(lr_batch_size=None, **{"lr": 1e-3, **options})
        return lambda net: build_optimizer(net, config, 256, device)

    def loop(kind: type[Optimizer], name: Any) -> Callable[[nn.Module], Optimizer]:
        groups = OptimizerConfig(name=name, lr=1e-3)
        return lambda net: kind(_plain_groups(build_optimizer(net, groups, 256)), lr=1e-3)

    def torchs_sgd(net: nn.Module) -> Optimizer:
        options = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
        return torch.optim.SGD(net.parameters(), lr=1e-3, foreach=False, **options)

    return {
        "torch SGD, for_loop": torchs_sgd,
        "sgd, foreach": ours(implementation="foreach"),
        "sgd, fused": ours(implementation="fused"),
        "adamw, for_loop": ours(name="adamw", implementation="for_loop"),
        "adamw, foreach": ours(name="adamw", implementation="foreach"),
        "adamw, fused": ours(name="adamw", implementation="fused"),
        "lars, a plain loop": loop(LarsLoop, "lars"),
        "lars": ours(name="lars"),
        "lamb, a plain loop": loop(LambLoop, "lamb"),
        "lamb": ours(name="lamb"),
    }


def _plain_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    kept = ("params", "weight_decay", "adapt")
    return [{name: group[name] for name in kept} for group in optimizer.param_groups]


def time_step(optimizer: Optimizer, device: torch.device) -> tuple[float, float]:
    """Return the seconds that a step took, and the CPU seconds of this process in it."""
    cpu_s = time.process_time()
    if device.type == "cpu":
        optimizer.step()
        cpu_s = time.process_time() - cpu_s
        return cpu_s, cpu_s
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    optimizer.step()
    end.record()
    cpu_s = time.process_time() - cpu_s
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3, cpu_s


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each, in turns")
    options = parser.parse_args()
    device = torch.device(options.device)
    net = create_model(options.model).to(device, memory_format=torch.channels_last)
    for parameter in net.parameters():
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    optimizers = {name: build(net) for name, build in contenders(device).items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in optimizers}
    for number in range(options.rounds + 2):
        for name, optimizer in optimizers.items():
            found = time_step(optimizer, device)
            # The first steps make the state.
            if number >= 2:
                times[name].append(found)
    medians = {
        name: [statistics.median(column) for column in zip(*found, strict=True)]
        for name, found in times.items()
    }
    base = medians["torch SGD, for_loop"][0]
    count = len(list(net.parameters()))
    print(f"{options.model}, {count} parameters, {device}, {torch.get_num_threads()} threads\n")
    print("| optimizer | ms per step | ratio | CPU ms |\n| --- | --- | --- | --- |")
    for name, (seconds, cpu_s) in medians.items():
        print(f"| {name} | {1e3 * seconds:.2f} | {seconds / base:.2f} | {1e3 * cpu_s:.2f} |")


if __name__ == "__main__":
    main()
