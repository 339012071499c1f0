"""CPU time per image of our loader and of others, side by side in one run.

    python benchmarks/make_peers.py PEERS
    python benchmarks/loader_data.py PEERS DATA
    python benchmarks/loader.py PEERS DATA
    python benchmarks/loader.py PEERS DATA --only native-originals ffcv-side500
    python benchmarks/loader.py PEERS DATA --group workers

The work: read, decode, RandomResizedCrop(224), mirror half of the images, batches of uint8. Each
loader runs in a process and an environment of its own, in its best documented form with one reading
thread, or in its main thread where it would need a process. All are started first. Then they read
all images in turns, round by round. What is compared is CPU time, user and system, of a loader's
whole process tree: others on the machine disturb it little. Ratios are taken within a round, to the
reference's epoch of the same round; medians over the rounds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from loader_contenders import GROUPS, REFERENCE, Contender, select
from make_peers import last_words

# What must hold, as (loader, data) against (loader, data): at most so much of its CPU time.
TARGETS = (
    ("native-originals", "torchvision", 0.40),
    ("native-side500", "ffcv-side500", 0.60),
    ("native-side320", "torchvision", 0.18),
    ("nvimgcodec-originals", "torchvision", 0.60),
)
Rounds = Mapping[str, Sequence[Mapping[str, float]]]


class Server:
    """A contender's process, which reads an epoch whenever it is asked.

    Args:
        command: the program.
    """

    def __init__(self, command: Sequence[str]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the server
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        try:
            self.ready = self._answer()
        except RuntimeError:
            self.close()
            raise

    def read_epoch(self) -> dict[str, float]:
        """Let it read all images; return their number, CPU and wall seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(last_words(self._errors.read()))
        answer: dict[str, Any] = json.loads(line)
        return answer


def cpu_ms(taken: Mapping[str, float]) -> float:
    """Return the CPU milliseconds per image of one round."""
    return 1000 * taken["cpu_s"] / taken["images"]


def ratio(rounds: Rounds, name: str, base: str) -> float:
    """Return the median over the rounds of one loader's CPU time as a share of another's."""
    pairs = zip(rounds[name], rounds[base], strict=True)
    return statistics.median(cpu_ms(one) / cpu_ms(other) for one, other in pairs)


def table(contenders: Sequence[Contender], rounds: Rounds, reasons: Mapping[str, str]) -> str:
    """Return the Markdown table: median, spread, share of the reference, images per second."""
    lines = [
        "| loader | data | CPU ms per image | lowest to highest | × reference | images/s, wall |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for contender in contenders:
        cells = [contender.label, contender.data]
        if contender.name in rounds:
            times = [cpu_ms(taken) for taken in rounds[contender.name]]
            rates = [taken["images"] / taken["wall_s"] for taken in rounds[contender.name]]
            share = f"{ratio(rounds, contender.name, REFERENCE):.2f}" if REFERENCE in rounds else ""
            cells += [f"{statistics.median(times):.2f}", f"{min(times):.2f} to {max(times):.2f}"]
            cells += [share, f"{statistics.median(rates):.0f}"]
        else:
            cells += [f"skipped: {reasons[contender.name]}", "", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def targets(rounds: Rounds) -> str:
    """Return the Markdown table of what must hold, where both sides were measured."""
    lines = ["| loader | against | at most | measured | holds |", "| --- | --- | --- | --- | --- |"]
    for name, base, most in TARGETS:
        if name in rounds and base in rounds:
            found = ratio(rounds, name, base)
            holds = "yes" if found <= most else "no"
            lines.append(f"| {name} | {base} | {most:.2f} | {found:.2f} | {holds} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def describe_machine() -> str:
    """Return processor, cores, system and date in one line."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    today = datetime.datetime.now(datetime.UTC).date()
    return f"{model}, {cores} cores, {platform.system()}, {today}"


def start(contenders: Sequence[Contender], options: argparse.Namespace) -> dict[str, Any]:
    """Start what can be started; return servers by name, and reasons for the rest."""
    found: dict[str, Any] = {}
    for contender in contenders:
        reason = contender.why_skipped(options.peers, options.data)
        if reason is None:
            command = contender.command(
                options.peers, options.data, options.images, options.batch_size
            )
            try:
                found[contender.name] = Server(command)
            except RuntimeError as error:
                reason = str(error)
        print(f"{contender.name}: {reason or 'ready'}", file=sys.stderr, flush=True)
        if reason is not None:
            found[contender.name] = reason
    return found


def measure(servers: Mapping[str, Server], num_rounds: int) -> dict[str, list[dict[str, float]]]:
    """Let all read in turns, each round beginning with another one.

    Raises:
        RuntimeError: one of them has ended, or has read no images.
    """
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
    names = list(servers)
    for number in range(num_rounds):
        first = number * len(names) // num_rounds
        for name in names[first:] + names[:first]:
            rounds[name].append(servers[name].read_epoch())
            if rounds[name][-1]["images"] == 0:
                raise RuntimeError(f"{name} has read no images")
        print(f"round {number + 1} of {num_rounds}", file=sys.stderr, flush=True)
    return rounds


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description="CPU time per image, ours and others.")
    parser.add_argument("peers", type=Path, help="folder of benchmarks/make_peers.py")
    parser.add_argument("data", type=Path, help="folder of benchmarks/loader_data.py")
    parser.add_argument("--group", choices=GROUPS, default="peers", help="(%(default)s)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these, and the reference")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--json", type=Path, help="write every round here")
    options = parser.parse_args(arguments)
    try:
        contenders = select(options.group, options.only)
    except ValueError as error:
        parser.error(str(error))
    options.images = sum(1 for _ in (options.data / "originals").glob("*/*"))
    if options.images == 0 or options.images % options.batch_size or options.rounds < 1:
        parser.error(f"{options.images} images in {options.data}/originals, in whole batches?")
    started = start(contenders, options)
    servers = {name: one for name, one in started.items() if isinstance(one, Server)}
    reasons = {name: one for name, one in started.items() if isinstance(one, str)}
    try:
        rounds = measure(servers, options.rounds)
    finally:
        for server in servers.values():
            server.close()
    versions: dict[str, dict[str, str]] = {}
    for contender in contenders:
        if contender.name in servers:
            found = servers[contender.name].ready["versions"]
            versions.setdefault(contender.env, {}).update(found)
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds, "versions": versions}, indent=1))
    print(f"{describe_machine()}; {options.images} images, {options.rounds} rounds\n")
    print(table(contenders, rounds, reasons))
    if held := targets(rounds):
        print(f"\n{held}")
    for env, found in versions.items():
        told = ", ".join(f"{name} {version}" for name, version in sorted(found.items()))
        print(f"\nVersions, {env}: {told}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
