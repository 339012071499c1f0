"""A process that has imported everything already, and forks the ranks of a run.

Most of a short run is imports: 4 s of a core for each rank, 6 s with DeepSpeed. Where it is not the
start of ranks that is tested but what they do, they are forked here, as if torchrun had started
them: processes of their own, with their own gloo, running the whole command.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEVICES = "--trainer.devices="
RUN_DIR = "--run_dir="


@dataclass(frozen=True)
class Ended:
    """How a command ended: its ranks' exit codes, below 0 a signal's, and what rank 0 has said."""

    codes: list[int]
    said: str

    @property
    def code(self) -> int:
        """The first that is not 0."""
        return next((code for code in self.codes if code), 0)


class RankServer:
    """Runs commands, one at a time.

    Args:
        folder: for what the ranks say.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def run(
        self,
        *arguments: str,
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        timeout_s: float = 300,
    ) -> Ended:
        """Run a command of resscale on as many ranks as it names by `--trainer.devices=`.

        Args:
            arguments: behind `resscale`.
            cwd: the folder to run it in.
            environ: variables beside those of this process.
            timeout_s: how long it may take.
        """
        self._number += 1
        output = self._folder / f"said-{self._number}"
        request = {
            "arguments": arguments,
            "cwd": str(cwd),
            "environ": {**os.environ, **(environ or {}), "OMP_NUM_THREADS": "1"},
            "output": str(output),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        timer = threading.Timer(timeout_s, self._kill)
        timer.start()
        answer = self._process.stdout.readline()
        timer.cancel()
        said = output.read_text() if output.exists() else ""
        assert answer, f"not done in {timeout_s} s, or the server has failed:\n{said}"
        return Ended(json.loads(answer), said)

    def close(self) -> None:
        """End the server."""
        self._process.communicate(timeout=30)

    def _kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)


def count_ranks(arguments: list[str]) -> int:
    """Return what the last `--trainer.devices=` says; 1 without one."""
    named = [argument for argument in arguments if argument.startswith(DEVICES)]
    return int(named[-1].removeprefix(DEVICES)) if named else 1


def variables_of(rank: int, world_size: int, port: int, arguments: list[str]) -> dict[str, str]:
    """Return what torchrun would tell a rank; nothing where there is one alone."""
    if world_size == 1:
        return {}
    run_dir = [a.removeprefix(RUN_DIR) for a in arguments if a.startswith(RUN_DIR)]
    return {
        "TORCHELASTIC_RUN_ID": "job",
        "RESSCALE_RUN_DIR": run_dir[-1],
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def become_rank(request: dict[str, Any], rank: int, world_size: int, port: int) -> int:
    """Run the command as one of its ranks; return the exit code."""
    arguments = request["arguments"]
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"] | variables_of(rank, world_size, port, arguments))
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = ["resscale", *arguments]
    output = os.open(request["output"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(here, there)
    from resscale.cli import main

    try:
        return main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve() -> None:
    """Answer each request, a line of JSON, by the exit codes of its ranks."""
    import resscale.cli_train  # noqa: F401 - what takes so long
    from resscale.training.zero_options import import_deepspeed

    importlib.import_module("torch.utils.tensorboard")
    if importlib.util.find_spec("deepspeed") is not None:
        import_deepspeed()
        # What it imports at its first use.
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
        importlib.import_module("deepspeed.runtime.zero.stage3")
    # A fork copies the thread that calls it alone.
    assert len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208 - their number is enough
    for line in sys.stdin:
        request = json.loads(line)
        world_size = count_ranks(request["arguments"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = []
        for rank in range(world_size):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    code = become_rank(request, rank, world_size, port)
                finally:
                    os._exit(code)
            ranks.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks]
        print(json.dumps(codes), flush=True)
    # Without clearing up a gigabyte of modules.
    os._exit(0)


if __name__ == "__main__":
    serve()
