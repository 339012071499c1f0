"""How the loss's gradient reaches the first layer of deep nets at initialisation.

    OMP_NUM_THREADS=1 python benchmarks/gradient_flow.py --out docs/gradient_flow.png

Prints a Markdown table, and with --out draws each convolution's gradient norm over depth. No
training: fresh weights, one batch of normal noise with random labels, one backward pass, medians
over seeds. In double precision, because a plain net of 1202 layers leaves the range of single.

Two measures, because they differ. The gradient of a *weight* is the gradient that arrives at its
layer times the signal that the layer sees. In a plain net without BN and biases the sum of
weight x gradient is the same for every layer (the loss changes equally, whichever layer is scaled),
so weight gradients die in all layers alike. The gradient of the *maps* shows where they die: it is
given where the first block reads and where the last block writes.

Zero padding takes from the signal at the borders, which He initialisation does not make up for: the
smaller the maps, the more. With `circular` padding nothing is taken.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resscale.models import ResNet, create_model

# (name, norm, padding); norm "none" is without BN
NETS = (
    ("plain20_cifar", "none", "zeros"),
    ("plain20_cifar", "batch", "zeros"),
    ("resnet20_cifar", "batch", "zeros"),
    ("plain110_cifar", "none", "zeros"),
    ("plain110_cifar", "none", "circular"),
    ("plain110_cifar", "batch", "zeros"),
    ("resnet110_cifar", "none", "zeros"),
    ("resnet110_cifar", "batch", "zeros"),
    ("plain1202_cifar", "none", "zeros"),
    ("plain1202_cifar", "none", "circular"),
    ("plain1202_cifar", "batch", "zeros"),
    ("resnet1202_cifar", "batch", "zeros"),
)
PANELS = ("110", "1202")
# (family, norm, padding) -> label and colour; others are in the table only
LINES = {
    ("plain", "batch", "zeros"): ("plain with BN", "tab:orange"),
    ("resnet", "batch", "zeros"): ("resnet with BN", "tab:blue"),
    ("plain", "none", "circular"): ("plain without BN, circular padding", "tab:pink"),
    ("plain", "none", "zeros"): ("plain without BN", "tab:red"),
}
Case = tuple[str, str, str]


@dataclass(frozen=True)
class GradientNorms:
    """Euclidean norms of the loss's gradient in one net after one backward pass."""

    weights: tuple[float, ...]
    """Of each convolution's weight, from the stem to the last block, projections included."""

    first_map: float
    """Of the map `(B, C, H, W)` that the first block reads."""

    last_map: float
    """Of the map that the last block writes."""


def gradient_norms(net: ResNet, images: Tensor, labels: Tensor) -> GradientNorms:
    """Return the gradient norms of the cross-entropy of `net`, a net without pre-activation.

    Args:
        net: fresh or trained; its gradients are overwritten.
        images: `(B, C, H, W)` in the dtype of the net.
        labels: `(B,)` class numbers.
    """
    net.zero_grad()
    maps: list[Tensor] = []
    # The pool's output, which no later layer overwrites; BN's is overwritten by the ReLU.
    ends = (net.maxpool, net.get_submodule(net.stage_names[-1]))
    hooks = [end.register_forward_hook(lambda _m, _x, y: maps.append(y)) for end in ends]
    try:
        logits = net(images)
    finally:
        for hook in hooks:
            hook.remove()
    for kept in maps:
        kept.retain_grad()
    F.cross_entropy(logits, labels).backward()
    weights = tuple(
        m.weight.grad.norm().item()
        for m in net.modules()
        if isinstance(m, nn.Conv2d) and m.weight.grad is not None
    )
    first, last = (0.0 if m.grad is None else m.grad.norm().item() for m in maps)
    return GradientNorms(weights, first, last)


def wrap_borders(net: nn.Module) -> None:
    """Make every padded convolution of `net` read across the border, not zeros; weights stay."""
    for parent in list(net.modules()):
        for name, old in list(parent.named_children()):
            if isinstance(old, nn.Conv2d) and any(old.padding):
                new = nn.Conv2d(
                    old.in_channels,
                    old.out_channels,
                    old.kernel_size,  # type: ignore[arg-type]
                    old.stride,  # type: ignore[arg-type]
                    old.padding,  # type: ignore[arg-type]
                    bias=old.bias is not None,
                    padding_mode="circular",
                    dtype=old.weight.dtype,
                )
                new.load_state_dict(old.state_dict())
                setattr(parent, name, new)


def measure(case: Case, seeds: int, batch: int, size: int) -> GradientNorms:
    """Return the medians over seeds 0 to `seeds` - 1, of `batch` images of `size` pixels a side."""
    name, norm, padding = case
    runs = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = create_model(name, num_classes=10, norm=norm).double()
        images = torch.randn(batch, 3, size, size, dtype=torch.float64)
        labels = torch.randint(10, (batch,))
        if padding == "circular":
            wrap_borders(net)
        runs.append(gradient_norms(net, images, labels))
    layers = zip(*(run.weights for run in runs), strict=True)
    return GradientNorms(
        tuple(statistics.median(layer) for layer in layers),
        statistics.median(run.first_map for run in runs),
        statistics.median(run.last_map for run in runs),
    )


def table_row(case: Case, norms: GradientNorms) -> str:
    """Return one line of the Markdown table."""
    name, norm, padding = case
    first, last = norms.weights[0], norms.weights[-1]
    cells = (
        *(name, "BN" if norm == "batch" else "none", padding),
        *(f"{value:.2g}" for value in (first, last, first / last)),
        f"{norms.first_map / norms.last_map:.2g}",
    )
    return f"| {' | '.join(cells)} |"


def draw(measured: dict[Case, GradientNorms], out: Path) -> None:
    """Write a picture with a panel per depth: weight-gradient norms over layers, log scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 4.2))
    for axis, depth in zip(axes, PANELS, strict=True):
        for (family, norm, padding), (label, color) in LINES.items():
            norms = measured[f"{family}{depth}_cifar", norm, padding]
            values = [value if value > 0 else math.nan for value in norms.weights]
            axis.plot(range(1, len(values) + 1), values, label=label, color=color, linewidth=1.2)
        axis.set(yscale="log", xlabel="convolution, from the input", title=f"{depth} layers")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    axes[0].set_ylabel("norm of the weight's gradient")
    figure.tight_layout()
    figure.savefig(out, dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, print and draw."""
    parser = argparse.ArgumentParser(description="Gradient norms over depth at initialisation.")
    parser.add_argument("--out", type=Path, help="where the PNG goes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="images")
    parser.add_argument("--size", type=int, default=32, help="pixels per side")
    options = parser.parse_args(arguments)
    for name in ("seeds", "batch", "size"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name} {value} must be at least 1.")
    print("| net | norm | padding | first weight | last weight | first/last | first/last map |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    measured = {}
    for case in NETS:
        measured[case] = measure(case, options.seeds, options.batch, options.size)
        print(table_row(case, measured[case]), flush=True)
    if options.out is not None:
        draw(measured, options.out)


if __name__ == "__main__":
    main()
