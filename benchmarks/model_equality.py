"""Compare our nets with torchvision's and timm's of the same name: keys, outputs, gradients.

The peers live in an environment of their own. torchvision's wheels are compiled for CUDA builds of
torch, and beside a CPU build `import torchvision` fails at its missing compiled operators, and
`import lightning` with it. Only the definitions of the nets are needed here, so this script gives
the operators empty stand-ins first. resscale.models needs neither Lightning nor the peers.

    python -m venv peers && source peers/bin/activate
    pip install "torch>=2.11,<2.14" numpy pillow pyyaml huggingface_hub safetensors
    pip install --no-deps torchvision==0.28.0 timm==1.0.31   # 0.28 belongs to torch 2.13
    pip install --no-deps -e .
    python benchmarks/model_equality.py                  # every name
    python benchmarks/model_equality.py --only resnet50d resnetrs50 --float64 resnet50d
    python benchmarks/model_equality.py --write-facts    # tests/models/peer_*.json*

Each peer gets random weights: every convolution, gamma, beta, bias and running statistic, so that
no branch is hidden by a zero. Its state dict is loaded with `strict=True`. Then compared are the
logits with running statistics (224 x 224 pixels, and 197 x 161, where rounding of odd maps shows),
the logits with batch statistics, the gradient of the first convolution, and the running statistics
after that step. A difference is the largest absolute one over the peer's largest absolute value.
The exit code is 1 if a net is missing or differs.

timm's resnetblur50 is left out. It does not blur the projections that stride; our option
`blurpool` does, as Zhang 2019 (arXiv 1904.11486) does.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import hashlib
import json
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FACTS = Path(__file__).parents[1] / "tests" / "models"

TORCHVISION = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
TIMM = (
    *("resnet26", "resnet200"),
    *("resnet18d", "resnet26d", "resnet34d", "resnet50d", "resnet101d", "resnet152d", "resnet200d"),
    *("resnext50d_32x4d", "resnext101_32x4d"),
    *("seresnet18", "seresnet34", "seresnet50", "seresnet101", "seresnet152", "seresnet152d"),
    *("seresnext50_32x4d", "seresnext101_32x4d", "seresnext101_32x8d"),
    *("resnetrs50", "resnetrs101", "resnetrs152", "resnetrs200"),
    *("resnetrs270", "resnetrs350", "resnetrs420"),
    *("resnetv2_18", "resnetv2_34", "resnetv2_50", "resnetv2_101", "resnetv2_152"),
)
_D = {"stem": "deep", "downsample": "avg"}
BY_OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet50c": ("resnet50", {"stem": "deep"}),
    "resnext101_32x16d": ("resnext101_32x8d", {"width_per_group": 16}),
    "seresnext26d_32x4d": ("resnet26d", {"groups": 32, "width_per_group": 4, "se": 16}),
    "seresnet200d": ("resnet200d", {"se": 16}),
    "resnetv2_34d": ("resnetv2_34", _D),
    "resnetv2_50d": ("resnetv2_50", _D),
}
"""timm's nets that are ours of another name with options: they show that options compose."""
NAMES = (*TORCHVISION, *TIMM, *BY_OPTIONS)
IN_FULL = (*TORCHVISION, "resnet50d", "resnetv2_50", "seresnet50", "resnetrs50")
"""The nets whose whole list of keys and shapes is written, in the peer's order."""

IN_FLOAT64 = ("resnetrs50", "resnetv2_50", "seresnext50_32x4d")
"""Nets compared in float64 too, where rounding could not pass for a difference or hide one."""

SIZES_PX = ((224, 224), (197, 161))
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class Peers:
    """Where a net comes from: `build(name)` gives the peer's, `source(name)` says whose it is."""

    build: Callable[[str], nn.Module]
    source: Callable[[str], str]


def import_peers() -> Peers:
    """Import torchvision and timm beside a torch that lacks torchvision's compiled operators."""
    for operator in ("nms", "qnms"):
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{operator}", schema)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the image codecs are missing too
        import timm
        import torchvision

    def build(name: str) -> nn.Module:
        if name in TORCHVISION:
            net: nn.Module = torchvision.models.get_model(name, weights=None)
        else:
            net = timm.create_model(name, pretrained=False, drop_rate=0.0, drop_path_rate=0.0)
        return net

    def source(name: str) -> str:
        if name in TORCHVISION:
            return f"torchvision {torchvision.__version__.partition('+')[0]}"
        return f"timm {timm.__version__}"

    return Peers(build, source)


def keys_and_shapes(net: nn.Module) -> list[tuple[str, list[int]]]:
    """Return the state dict's keys and shapes in its order."""
    return [(key, list(value.shape)) for key, value in net.state_dict().items()]


def keys_sha256(net: nn.Module) -> str:
    """Return the SHA-256 of the sorted lines `key shape`, the shape written as a tuple."""
    lines = sorted(f"{key} {tuple(shape)}\n" for key, shape in keys_and_shapes(net))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def count_parameters(net: nn.Module) -> int:
    """Return the number of learned values."""
    return sum(p.numel() for p in net.parameters())


def write_facts(peers: Peers, folder: Path) -> None:
    """Write what the tests compare with: counts and hashes of all names, the keys of some."""
    facts, in_full = {}, {}
    for name in NAMES:
        with torch.device("meta"):
            net = peers.build(name)
        ours, options = BY_OPTIONS.get(name, (name, {}))
        facts[name] = {
            "source": peers.source(name),
            "ours": ours,
            "options": options,
            "parameters": count_parameters(net),
            "num_keys": len(net.state_dict()),
            "keys_sha256": keys_sha256(net),
        }
        if name in IN_FULL:
            in_full[name] = keys_and_shapes(net)
    (folder / "peer_facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    packed = json.dumps(in_full, separators=(",", ":")).encode()
    # No time of writing, so that the same facts give the same bytes.
    (folder / "peer_state_dicts.json.gz").write_bytes(gzip.compress(packed, mtime=0))


def randomise(net: nn.Module, seed: int) -> None:
    """Give every parameter and running statistic of `net` a random value, in place.

    Activations stay near 1, so that sigmoids do not saturate and sums do not swallow branches.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like) * std

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return (torch.rand(like.shape, generator=generator) * (high - low) + low).to(like)

    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                module.weight.copy_(normal(module.weight, (2 / fan_in) ** 0.5))
                if module.bias is not None:
                    module.bias.copy_(normal(module.bias, 0.2))
        for norm in norms:
            norm.weight.copy_(uniform(norm.weight, 0.5, 1.5))
            norm.bias.copy_(normal(norm.bias, 0.2))
            norm.momentum = 1.0
        # Statistics that fit the activations, and then off by a random bit.
        x = torch.randn(4, 3, 96, 96, generator=generator).to(norms[0].weight)
        net.train()(x)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
            mean.add_(normal(mean, 0.2) * var.sqrt())
            var.mul_(uniform(var, 0.7, 1.4))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest absolute difference over `theirs`' largest absolute value."""
    scale = theirs.abs().max().item()
    return (ours - theirs).abs().max().item() / scale if scale else float("inf")


@dataclass(frozen=True)
class Row:
    """One line of the table; the differences are relative, None where nothing could be run."""

    name: str
    peer: str
    parameters: int
    keys: str
    differences: tuple[float, ...] | None
    verdict: str


def compare(name: str, peers: Peers, dtype: torch.dtype, seed: int) -> Row:
    """Build both nets of `name`, load the peer's weights into ours, compare what they compute."""
    from resscale.models import create_model, list_models

    theirs = peers.build(name).to(dtype)
    our_name, options = BY_OPTIONS.get(name, (name, {}))
    about = (label_of(name, dtype), peers.source(name), count_parameters(theirs))
    if our_name not in list_models():
        return Row(*about, "-", None, "missing")
    randomise(theirs, seed)
    ours = create_model(our_name, **options).to(dtype)
    keys = describe_keys(ours, theirs)
    try:
        # A copy, because loading with assign would share the running statistics.
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()), strict=True)
    except RuntimeError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return Row(*about, keys, None, "DIFFERS: keys")
    differences = (*compare_eval(ours, theirs, seed), *compare_train(ours, theirs, seed))
    equal = all(d <= TOLERANCE[dtype] for d in differences)
    return Row(*about, keys, differences, "equal" if equal else "DIFFERS")


def label_of(name: str, dtype: torch.dtype) -> str:
    """Return what the table calls a net: its name, how we make it, and a dtype out of the usual."""
    label = name
    if name in BY_OPTIONS:
        ours, options = BY_OPTIONS[name]
        label += f" = {ours} with " + ", ".join(f"{k}={v}" for k, v in options.items())
    return label if dtype == torch.float32 else f"{label} ({str(dtype).removeprefix('torch.')})"


def describe_keys(ours: nn.Module, theirs: nn.Module) -> str:
    """Say whether both state dicts have the same keys and shapes, and the same order."""
    a, b = keys_and_shapes(ours), keys_and_shapes(theirs)
    if a == b:
        return f"{len(b)}, in order"
    return f"{len(b)}, other order" if sorted(a) == sorted(b) else "differ"


def random_images(like: nn.Module, size_px: tuple[int, int], seed: int) -> Tensor:
    """Return two normal images `(2, 3, H, W)` in the dtype of `like`'s parameters."""
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randn(2, 3, *size_px, generator=generator).to(next(like.parameters()))


def compare_eval(ours: nn.Module, theirs: nn.Module, seed: int) -> list[float]:
    """Return the logits' differences with running statistics, one per size of `SIZES_PX`."""
    with torch.no_grad():
        images = [random_images(theirs, size_px, seed) for size_px in SIZES_PX]
        return [difference(ours.eval()(x), theirs.eval()(x)) for x in images]


def compare_train(ours: nn.Module, theirs: nn.Module, seed: int) -> list[float]:
    """Return the differences of logits, first convolution's gradient and running statistics."""
    x = random_images(theirs, SIZES_PX[0], seed)
    first_convolution = next(key for key, p in theirs.named_parameters() if p.dim() == 4)
    outputs, gradients = [], []
    for net in (ours, theirs):
        output = net.train()(x)
        parameters = dict(net.named_parameters())
        # Squares, so that each logit's gradient depends on it.
        computed = torch.autograd.grad(output.square().mean(), list(parameters.values()))
        outputs.append(output.detach())
        gradients.append(dict(zip(parameters, computed, strict=True)))
    for key, gradient in gradients[1].items():
        # Without a gradient a parameter could differ and the outputs would not show it.
        assert gradient.abs().max() > 0, f"{key} of the peer has no gradient"
    gradient_of = [named[first_convolution] for named in gradients]
    wanted = dict(theirs.named_buffers())
    statistics = [
        difference(b.double(), wanted[k].double())
        for k, b in ours.named_buffers()
        if k.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    return [difference(*outputs), difference(*gradient_of), max(statistics)]


COLUMNS = (
    *("name", "peer", "parameters", "keys", "eval 224", "eval 197x161"),
    *("train", "gradient", "statistics", "verdict"),
)


def cells(row: Row) -> list[str]:
    """Return the row's texts, one per entry of `COLUMNS`."""
    differences = [f"{d:.1e}" if d else "0" for d in row.differences or ()] or ["-"] * 5
    return [row.name, row.peer, f"{row.parameters:,}", row.keys, *differences, row.verdict]


def print_row(texts: Sequence[str], markdown: bool) -> None:
    """Print one line of the table, as Markdown or in columns."""
    widths = (25, 19, 12, 17, 9, 13, 9, 9, 11, 8)
    plain = " ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True))
    print(f"| {' | '.join(texts)} |" if markdown else plain, flush=True)


def parse_arguments() -> Any:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--float64", nargs="*", default=IN_FLOAT64, choices=NAMES, metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--write-facts", action="store_true", help="write the tests' files and compare nothing"
    )
    return parser.parse_args()


def main() -> int:
    """Print the table, or write the facts; return 1 if a net is missing or differs."""
    arguments = parse_arguments()
    peers = import_peers()
    if arguments.write_facts:
        write_facts(peers, FACTS)
        return 0
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads\n")
    print_row(COLUMNS, arguments.markdown)
    if arguments.markdown:
        print_row(["---"] * len(COLUMNS), markdown=True)
    work = [(name, torch.float32) for name in arguments.only]
    work += [(name, torch.float64) for name in arguments.float64]
    rows = []
    for name, dtype in work:
        rows.append(compare(name, peers, dtype, arguments.seed))
        print_row(cells(rows[-1]), arguments.markdown)
    unequal = [row.name for row in rows if row.verdict != "equal"]
    print(f"\n{len(rows) - len(unequal)} of {len(rows)} comparisons are equal.")
    if unequal:
        print(f"Not equal: {', '.join(unequal)}.")
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
