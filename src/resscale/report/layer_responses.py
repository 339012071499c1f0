"""How strongly each layer responds: the standard deviation of its output (He et al. 2015, fig. 7).

A response is what comes out of a layer's BN, before the ReLU and the addition; out of the
convolution itself where no BN follows it, as in pre-activation nets. Projections are left out: they
are no layers of the main path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from resscale.report.response_figure import RESPONSES_FILE


@dataclass(frozen=True)
class LayerResponse:
    """One layer: its name in the net, and the standard deviation of its responses.

    Args:
        name: of the convolution, such as `layer1.0.conv2`.
        std: over images, channels and pixels.
    """

    name: str
    std: float


def layer_responses(net: nn.Module, batches: Iterable[Tensor]) -> list[LayerResponse]:
    """Return the responses of a net's convolutions in their order, the net in evaluation mode.

    Args:
        net: any net of the family; its mode is put back afterwards.
        batches: prepared images, floating-point `(B, C, H, W)`.

    Raises:
        ValueError: there are no batches.
    """
    layers = _responding_modules(net)
    # Sum, sum of squares, count: in float64, since a mean far from 0 would eat the digits.
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in layers}

    def add(name: str, output: Tensor) -> None:
        values = output.double()
        count = torch.tensor(float(values.numel()), dtype=torch.float64)
        sums[name] += torch.stack([values.sum().cpu(), values.square().sum().cpu(), count])

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: add(name, output))
        for name, module in layers.items()
    ]
    was_training = net.training
    try:
        net.eval()
        with torch.no_grad():
            for images in batches:
                net(images)
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    if not all(total[2] for total in sums.values()):
        raise ValueError("layer_responses needs at least one batch of images")
    return [LayerResponse(name, _std(*total.tolist())) for name, total in sums.items()]


def write_responses(
    responses: Iterable[LayerResponse], run: Path, num_images: int, global_step: int
) -> Path:
    """Write them into a run directory, where `resscale report` looks for them.

    Args:
        responses: by layer.
        run: the run directory.
        num_images: that they were measured on.
        global_step: optimizer steps behind the weights.
    """
    path = run / RESPONSES_FILE
    facts = {
        "num_images": num_images,
        "global_step": global_step,
        "layers": [asdict(response) for response in responses],
    }
    path.write_text(json.dumps(facts, indent=1) + "\n")
    return path


def _responding_modules(net: nn.Module) -> dict[str, nn.Module]:
    """Return, by convolution, the module whose output is its response."""
    modules = dict(net.named_modules())
    found: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d) or _is_beside_the_path(name):
            continue
        parent, dot, own = name.rpartition(".")
        # Blocks number their layers conv1, bn1, ..; a deep stem stands in a row: 0 conv, 1 BN, ..
        beside = str(int(own) + 1) if own.isdigit() else own.replace("conv", "bn")
        norm = modules.get(parent + dot + beside)
        found[name] = norm if isinstance(norm, nn.BatchNorm2d) else module
    return found


def _is_beside_the_path(name: str) -> bool:
    return any(part in ("downsample", "se", "head") for part in name.split("."))


def _std(total: float, squares: float, count: float) -> float:
    mean = total / count
    return math.sqrt(max(0.0, squares / count - mean * mean))
