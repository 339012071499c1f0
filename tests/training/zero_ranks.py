"""Runs a tiny net under DeepSpeed itself on real ranks, and keeps what each rank then holds.

    python tests/training/zero_ranks.py OUT RANK WORLD_SIZE

Writes `OUT/rank-RANK.pt`: facts by stage. `facts_of` starts the ranks and reads the files.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Facts = dict[int, dict[str, Any]]
STAGES = (1, 2, 3)
# Stage 3 keeps parameters of up to so many elements whole on each rank, between steps too.
PERSISTENT = 10
LR = 0.02


class Net(nn.Module):
    """Sizes that neither 2 nor 3 divides: 55 and 35 elements; 7, 5 and 1 are small."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(11, 5)
        self.last = nn.Linear(5, 7)
        self.scale = nn.Parameter(torch.empty(1))
        # Each element has a value of its own: none can be mistaken for another.
        values = torch.linspace(-1.0, 1.0, sum(p.numel() for p in self.parameters()))
        start = 0
        for parameter in self.parameters():
            end = start + parameter.numel()
            parameter.data = values[start:end].view(parameter.shape).clone()
            start = end

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.first(x))) * self.scale
        return out

    def groups(self) -> list[list[nn.Parameter]]:
        """Weights; biases; and a group of one element, of which most ranks get nothing."""
        return [
            [self.first.weight, self.last.weight],
            [self.first.bias, self.last.bias],
            [self.scale],
        ]


def loss_of(model: nn.Module) -> Tensor:
    """The same on every rank, so that the ranks' mean gradient is one process's."""
    x = torch.linspace(-2.0, 2.0, 44).view(4, 11)
    loss: Tensor = model(x).square().mean()
    return loss


def optimizer_of(name: str, net: Net) -> Any:
    """Return the groups' optimizer; weights alone are adapted, where that is an option."""
    from resscale.training.lamb import Lamb
    from resscale.training.lars import Lars

    decays = (0.1, 0.0, 0.0)
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": decay}
        for params, decay in zip(net.groups(), decays, strict=True)
    ]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=LR, momentum=0.9, nesterov=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=LR)
    for group in groups[1:]:
        group["adapt"] = False
    if name == "lamb":
        return Lamb(groups, lr=LR)
    return Lars(groups, lr=LR, momentum=0.9, trust_coefficient=0.1)


def train_plainly(name: str, num_steps: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return weights and the optimizer's state after some steps of torch alone."""
    net = Net()
    optimizer = optimizer_of(name, net)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in net.named_parameters()}, optimizer.state_dict()


@functools.cache
def facts_of(world_size: int) -> list[Facts]:
    """Return what each rank kept; the ranks run once per test session and world size."""
    pytest.importorskip("deepspeed", reason="the extra [deepspeed] is not installed")
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, __file__, folder, str(rank), str(world_size)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            )
            for rank in range(world_size)
        ]
        try:
            said = [rank.communicate(timeout=200)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(said)
        return [
            torch.load(Path(folder) / f"rank-{rank}.pt", weights_only=True)
            for rank in range(world_size)
        ]


def _engine_of(
    stage: int, optimizer_name: str, weights: dict[str, Tensor] | None = None
) -> tuple[Any, Net]:
    import deepspeed

    net = Net()
    net.load_state_dict(weights or net.state_dict())
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 4,
        # Left out, it is 1.
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": PERSISTENT,
        },
    }
    engine, *_ = deepspeed.initialize(
        model=net, optimizer=optimizer_of(optimizer_name, net), config=config
    )
    return engine, net


def _step(engine: Any) -> None:
    engine.backward(loss_of(engine))
    engine.step()


def _wholes(net: Net) -> dict[str, Tensor]:
    from resscale.training.partition import gather_part, local_part

    named = net.named_parameters()
    return {name: gather_part(local_part(p), p).clone().view(-1) for name, p in named}


def _parts(net: Net) -> dict[str, Any]:
    """Return what `partition` says of each parameter."""
    from resscale.training.partition import (
        full_shape,
        gather_part,
        is_partitioned,
        local_part,
        own_part,
    )

    plain = dict(Net().named_parameters())
    facts = {}
    for name, parameter in net.named_parameters():
        part, whole = local_part(parameter), plain[name].detach()
        facts[name] = {
            "is_partitioned": is_partitioned(parameter),
            "shape": tuple(parameter.shape),
            "full_shape": tuple(full_shape(parameter)),
            "local": part.clone(),
            "own": own_part(whole, parameter).clone(),
            "gathered": gather_part(part, parameter).clone(),
            "gathered_other": gather_part(3 * part, parameter).clone(),
        }
    return facts


def _sgd_facts(stage: int) -> dict[str, Any]:
    from resscale.training.zero_fragments import (
        find_fragments,
        gather_state,
        scatter_state,
    )

    engine, net = _engine_of(stage, "sgd")
    zero, groups = engine.optimizer, net.groups()
    facts: dict[str, Any] = {"parts": _parts(net)}
    fragments = find_fragments(zero, groups)
    facts["fragments"] = [(f.parameter, f.start, f.length) for f in fragments]
    facts["in_flats"] = [f.of_flat(f.flat).clone() for f in fragments]
    facts["flats"] = [(id(f.flat), f.flat_start, f.length) for f in fragments]
    facts["before"] = gather_state(zero.optimizer, groups, fragments)
    scatter_state(zero.optimizer, facts["before"], fragments)
    facts["before_again"] = gather_state(zero.optimizer, groups, fragments)
    _step(engine)
    facts["after_1"] = _wholes(net)
    facts["shapes_after_1"] = {name: tuple(p.shape) for name, p in net.named_parameters()}

    # Two steps of torch's own, taken over, and a third under ZeRO.
    weights, state = train_plainly("sgd", 2)
    engine, net = _engine_of(stage, "sgd", weights)
    zero, groups = engine.optimizer, net.groups()
    fragments = find_fragments(zero, groups)
    scatter_state(zero.optimizer, state, fragments)
    facts["gathered"] = gather_state(zero.optimizer, groups, fragments)
    _step(engine)
    facts["after_3"] = _wholes(net)
    return facts


def _lars_facts(stage: int) -> dict[str, Any]:
    from resscale.training.zero import _tell_layers

    engine, net = _engine_of(stage, "lars")
    optimizer = engine.optimizer.optimizer
    _tell_layers(optimizer, engine.optimizer, net.groups(), torch.device("cpu"))
    layout = optimizer._layout
    for _ in range(3):
        _step(engine)
    return {
        "lars": _wholes(net),
        "lars_layers": layout.num_layers,
        "lars_fragments": sorted(
            (f.layer, f.length) for found in layout.fragments.values() for f in found
        ),
    }


def _adam_facts(stage: int, name: str) -> dict[str, Any]:
    """Two steps from nothing; then torch's own state of two steps, taken over, and a third."""
    from resscale.training.zero import _tell_layers
    from resscale.training.zero_fragments import (
        find_fragments,
        gather_state,
        scatter_state,
    )

    engine, net = _engine_of(stage, name)
    zero, groups = engine.optimizer, net.groups()
    if name == "lamb":
        _tell_layers(zero.optimizer, zero, groups, torch.device("cpu"))
    fragments = find_fragments(zero, groups)
    facts: dict[str, Any] = {}
    for _ in range(2):
        _step(engine)
    facts["after_2"] = _wholes(net)
    facts["state_after_2"] = gather_state(zero.optimizer, groups, fragments)
    _, state = train_plainly(name, 2)
    scatter_state(zero.optimizer, state, fragments)
    facts["gathered"] = gather_state(zero.optimizer, groups, fragments)
    _step(engine)
    facts["after_3"] = _wholes(net)
    facts["state_after_3"] = gather_state(zero.optimizer, groups, fragments)
    return {f"{name} {key}": fact for key, fact in facts.items()}


def main(folder: Path, rank: int, world_size: int) -> None:
    """Be one rank."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    import deepspeed

    # Compiled at first use, in minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")
    facts = {
        stage: {
            **_sgd_facts(stage),
            **_lars_facts(stage),
            **_adam_facts(stage, "adamw"),
            **_adam_facts(stage, "lamb"),
        }
        for stage in STAGES
    }
    torch.save(facts, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
