"""Training steps side by side: a plain loop, `resscale fit`, timm's and torchvision's.

    python benchmarks/make_peers.py PEERS --only torch
    python benchmarks/step.py PEERS                                          # one GPU, resnet50
    python benchmarks/step.py --peer_python python3 --shards data/imagenet/train
    OMP_NUM_THREADS=1 python benchmarks/step.py PEERS --device cpu --model resnet18 \
        --image_size 64 --batch_size 8 --steps 2 --rounds 5 --compile false

Each loop is a process of its own, timm's and torchvision's in an environment of theirs. All are
started first, compile and warm up; then they train blocks of steps in turns, round by round. On a
GPU the wall clock is compared, between two waits for the device; on a CPU the CPU time of the
process, which others on the machine disturb little. Ratios are taken within a round; medians over
the rounds. Batches are random pixels on the device. With --shards one more `resscale fit` reads
real images.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loader import Server, describe_machine
from make_peers import python_of, why_skipped

PEERS = Path(__file__).parent / "peers"
REFERENCE = "plain"
_TOLD = (
    "model", "num_classes", "image_size", "batch_size", "steps", "device", "precision", "compile",
    "num_threads",
)  # fmt: skip
Rounds = Mapping[str, Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class Loop:
    """A training loop.

    Args:
        name: on the command line.
        label: in the table.
        script: in the folder of peers, with its arguments.
        is_peer: runs in the other environment.
        mode: of torch.compile; None: the one that is asked for.
    """

    name: str
    label: str
    script: tuple[str, ...]
    is_peer: bool = False
    mode: str | None = None


LOOPS = (
    Loop("plain", "plain loop, our net", ("torch_steps.py", "plain")),
    Loop("resscale", "resscale fit", ("ours_steps.py",)),
    Loop("graphs", "resscale fit, CUDA graphs", ("ours_steps.py",), mode="reduce-overhead"),
    Loop("timm", "timm", ("torch_steps.py", "timm"), is_peer=True),
    Loop("torchvision", "torchvision", ("torch_steps.py", "torchvision"), is_peer=True),
    Loop("shards", "resscale fit, real images", ("ours_steps.py",)),
)


def choose_loops(options: argparse.Namespace) -> list[Loop]:
    """Return the loops to run, the reference first."""
    wanted = set(options.only or [loop.name for loop in LOOPS]) | {REFERENCE}
    if options.device != "cuda" or options.compile == "false":
        wanted.discard("graphs")
    if not options.shards:
        wanted.discard("shards")
    return [loop for loop in LOOPS if loop.name in wanted]


def command_of(loop: Loop, options: argparse.Namespace) -> list[str]:
    """Return the program of a loop."""
    python = sys.executable
    if loop.is_peer:
        python = options.peer_python or str(python_of(options.peers, "torch"))
    values = {name: getattr(options, name) for name in _TOLD}
    values["compile_mode"] = loop.mode or options.compile_mode
    if loop.name == "shards":
        values["shards"] = options.shards
    told = [f"--{name}={value}" for name, value in values.items() if value is not None]
    return [python, str(PEERS / loop.script[0]), *loop.script[1:], *told]


def why_left_out(loop: Loop, options: argparse.Namespace) -> str | None:
    """Return why a loop cannot run, None where it can."""
    if not loop.is_peer or options.peer_python:
        return None
    if options.peers is None:
        return "neither PEERS nor --peer_python was given"
    return why_skipped(options.peers, "torch")


def seconds(taken: Mapping[str, float], device: str) -> float:
    """Return what is compared: wall seconds of a GPU, CPU seconds elsewhere."""
    return taken["wall_s"] if device == "cuda" else taken["cpu_s"]


def ratio(rounds: Rounds, name: str, base: str, device: str) -> float:
    """Return the median over rounds of one loop's rate as a share of another's."""
    pairs = zip(rounds[name], rounds[base], strict=True)
    return statistics.median(
        (one["images"] / seconds(one, device)) / (other["images"] / seconds(other, device))
        for one, other in pairs
    )


def table(
    loops: Sequence[Loop], rounds: Rounds, reasons: Mapping[str, str], device: str, steps: int
) -> str:
    """Return the Markdown table: images/s, time per step with its spread, ratios, memory."""
    unit = "ms" if device == "cuda" else "CPU ms"
    lines = [
        f"| loop | images/s | {unit} per step | lowest to highest | × plain | × timm | peak GiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for loop in loops:
        if loop.name not in rounds:
            lines.append(f"| {loop.label} | left out: {reasons[loop.name]} | | | | | |")
            continue
        found = rounds[loop.name]
        times = [1000 * seconds(taken, device) / steps for taken in found]
        rate = statistics.median(taken["images"] / seconds(taken, device) for taken in found)
        memory = max(taken["memory_bytes"] for taken in found)
        cells = [
            *(loop.label, f"{rate:,.1f}", f"{statistics.median(times):.2f}"),
            f"{min(times):.2f} to {max(times):.2f}",
            *(
                f"{ratio(rounds, loop.name, base, device):.3f}" if base in rounds else "-"
                for base in (REFERENCE, "timm")
            ),
            f"{memory / 2**30:.2f}" if memory else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(servers: Mapping[str, Server], num_rounds: int) -> dict[str, list[dict[str, float]]]:
    """Let all train in turns, each round beginning with another one."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    names = list(servers)
    for number in range(num_rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            rounds[name].append(servers[name].read_epoch())
        print(f"round {number + 1} of {num_rounds}", file=sys.stderr, flush=True)
    return rounds


def start(
    loops: Sequence[Loop], options: argparse.Namespace
) -> tuple[dict[str, Server], dict[str, str]]:
    """Start what can be started; return servers by name, and reasons for the rest."""
    servers: dict[str, Server] = {}
    reasons: dict[str, str] = {}
    for loop in loops:
        reason = why_left_out(loop, options)
        if reason is None:
            try:
                servers[loop.name] = Server(command_of(loop, options))
            except (RuntimeError, OSError) as error:
                reason = str(error)
        if reason is not None:
            reasons[loop.name] = reason
        print(f"{loop.name}: {reason or 'ready'}", file=sys.stderr, flush=True)
    return servers, reasons


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="Training steps, ours and others.")
    parser.add_argument("peers", type=Path, nargs="?", help="folder of benchmarks/make_peers.py")
    parser.add_argument("--peer_python", help="a Python that has torch, timm and torchvision")
    parser.add_argument("--shards", help="training shards: one more loop, on real images")
    parser.add_argument("--only", nargs="+", choices=[loop.name for loop in LOOPS])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(%(default)s)")
    parser.add_argument("--model", default="resnet50", help="(%(default)s)")
    parser.add_argument("--num_classes", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--image_size", type=int, default=224, help="pixels (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=256, help="images (%(default)s)")
    parser.add_argument("--precision", choices=("32", "bf16"), default="bf16", help="(%(default)s)")
    parser.add_argument(
        "--compile", choices=("true", "false"), default="true", help="(%(default)s)"
    )
    parser.add_argument("--compile_mode", help="of torch.compile, for all that compile")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="of a block (%(default)s)")
    parser.add_argument("--num_threads", type=int, help="of torch on a CPU")
    parser.add_argument("--json", type=Path, help="write every round here")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, measure and print; 1 where our own loops could not be measured."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    for name in ("rounds", "steps", "batch_size", "image_size"):
        if (value := getattr(options, name)) < 1:
            parser.error(f"--{name} {value} must be at least 1.")
    loops = choose_loops(options)
    servers, reasons = start(loops, options)
    try:
        rounds = measure(servers, options.rounds)
        versions = {name: server.ready["versions"] for name, server in servers.items()}
    finally:
        for server in servers.values():
            server.close()
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "versions": versions}, indent=1))
    compiled = "compiled" if options.compile == "true" else "not compiled"
    print(
        f"{describe_machine()}; {options.model} at {options.image_size} pixels, batches of "
        f"{options.batch_size}, {options.precision}, {compiled}; {options.rounds} rounds of "
        f"{options.steps} steps on {options.device}\n"
    )
    print(table(loops, rounds, reasons, options.device, options.steps))
    for name, found in versions.items():
        told = ", ".join(f"{key} {value}" for key, value in sorted(found.items()))
        print(f"\nVersions, {name}: {told}.")
    return 0 if {"plain", "resscale"} <= set(rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
