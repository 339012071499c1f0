"""Makes all files that benchmarks/loader.py and benchmarks/pack.py read: pictures, and each format.

    python benchmarks/make_peers.py PEERS
    python benchmarks/loader_data.py PEERS DATA

What is there is kept. A format whose library is not there is skipped, with the reason.

    DATA/originals, DATA/side500    pictures in class folders (benchmarks/photos.py)
    DATA/shards/<set>/train         our shards; side320 are the originals packed with --resize 320,
                                    side320q95 with --quality 95 as well
    DATA/ffcv, DATA/litdata, DATA/mds
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from make_peers import last_words, python_of, why_skipped

SCRIPTS = Path(__file__).resolve().parent
OURS = "ours"


@dataclass(frozen=True)
class Step:
    """One thing to make.

    Args:
        made: below the data folder; there already: nothing to do.
        env: its environment of make_peers.py, or "ours".
        arguments: of Python; `{data}` is the data folder, `{here}` the scripts', and `{made}` what
            is made, under a name for the time being.
    """

    made: str
    env: str
    arguments: tuple[str, ...]


def _pack(source: str, name: str, *options: str) -> Step:
    return Step(
        f"shards/{name}",
        OURS,
        ("-m", "resscale", "pack", "imagefolder", f"{{data}}/{source}", "{made}", *options),
    )


def _ffcv(name: str, *options: str) -> Step:
    script = ("{here}/peers/ffcv_pack.py", "{data}/originals", "{made}")
    return Step(f"ffcv/{name}.beton", "ffcv", (*script, *options))


def _torch(script_name: str, made: str, env: str) -> Step:
    script = ("{here}/peers/torch_pack.py", script_name, "{data}/originals", "{made}")
    return Step(f"{made}/originals", env, script)


STEPS = (
    _pack("originals", "originals", "--quiet"),
    _pack("side500", "side500", "--quiet"),
    _pack("originals", "side320", "--resize", "320", "--quiet"),
    _pack("originals", "side320q95", "--resize", "320", "--quality", "95", "--quiet"),
    Step("shards/originals/train/.dali", "dali", ("{here}/peers/dali_index.py", "{made}")),
    Step("shards/side320/train/.dali", "dali", ("{here}/peers/dali_index.py", "{made}")),
    _ffcv("originals"),
    _ffcv("side500", "--max_resolution", "500"),
    _ffcv("side500-half-raw", "--max_resolution", "500", "--raw_share", "0.5"),
    _torch("litdata", "litdata", "torch"),
    _torch("mds-jpeg", "mds", "torch"),
)


def photo_steps(count: int) -> tuple[Step, ...]:
    """Return the step that makes the pictures."""
    script = ("{here}/photos.py", "{data}", "--count", str(count))
    return (Step("side500/.complete", "data", script),)


def make(step: Step, peers: Path, data: Path) -> str:
    """Make what a step makes, unless it is there; return in a word how it went."""
    final = data / step.made
    if final.exists():
        return "is there"
    if step.env != OURS and (reason := why_skipped(peers, step.env)):
        return f"skipped: {reason}"
    # Under another name until it is whole; suffixes matter to some.
    made = final.with_name("making-" + final.name)
    if made.is_dir():
        shutil.rmtree(made)
    made.parent.mkdir(parents=True, exist_ok=True)
    python = sys.executable if step.env == OURS else str(python_of(peers, step.env))
    words = [part.format(data=data, here=SCRIPTS, made=made) for part in step.arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, *words], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        return f"failed: {last_words(done.stderr + done.stdout)}"
    if made.exists():
        made.rename(final)
    else:
        final.touch()
    return "made"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make everything."""
    parser = argparse.ArgumentParser(description="The files that the benchmarks read.")
    parser.add_argument("peers", type=Path, help="folder of benchmarks/make_peers.py")
    parser.add_argument("data", type=Path)
    parser.add_argument("--count", type=int, default=3072, help="pictures (%(default)s)")
    options = parser.parse_args(arguments)
    for step in (*photo_steps(options.count), *STEPS):
        print(f"{step.made}: {make(step, options.peers, options.data.resolve())}", flush=True)


if __name__ == "__main__":
    main()
