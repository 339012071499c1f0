"""The files that a cluster's daemons read: configuration, key, devices, names."""

from __future__ import annotations

import random
import string
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent


def write_files(
    folder: Path,
    nodes: Mapping[str, str],
    *,
    head: str,
    cpus: int,
    gpus: int,
    node_timeout_s: int,
    kill_wait_s: int,
) -> None:
    """Write all of them.

    Args:
        folder: of the cluster; empty.
        nodes: addresses by name.
        head: address of the head node.
        cpus: of each node.
        gpus: of each node.
        node_timeout_s: after how many seconds of silence a node is given up.
        kill_wait_s: between SLURM's SIGTERM and its SIGKILL.
    """
    for name in ("state", "gpus", *(f"spool/{node}" for node in nodes)):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(random.randbytes(1024))
    # SLURM wants devices; these do nothing.
    for number in range(gpus):
        (folder / "gpus" / f"gpu{number}").symlink_to("/dev/null")
    has = f" Gres=gpu:{gpus}" if gpus else ""
    lines = [
        f"NodeName={node} NodeAddr={address} CPUs={cpus} RealMemory=4000{has}"
        for node, address in nodes.items()
    ]
    template = string.Template((HERE / "slurm.conf").read_text())
    text = template.substitute(
        folder=folder,
        nodes="\n".join(lines),
        # Ids of another cluster's jobs must not be taken for those of this one.
        first_job=random.randrange(1_000, 900_000, 1_000),
        node_timeout_s=node_timeout_s,
        kill_wait_s=kill_wait_s,
    )
    (folder / "slurm.conf").write_text(text)
    devices = f"{folder}/gpus/gpu[0-{gpus - 1}]"
    gres = [f"NodeName={node} Name=gpu File={devices}\n" for node in nodes if gpus]
    (folder / "gres.conf").write_text("".join(gres))
    hosts = [f"{address} {name}\n" for name, address in {"head": head, **nodes}.items()]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(hosts))


def munge_options(folder: Path) -> list[str]:
    """What munged is told of its files."""
    files = {"socket": "sock", "key-file": "key", "pid-file": "pid"}
    files |= {"log-file": "log", "seed-file": "seed"}
    return [f"--{name}={folder}/munge.{suffix}" for name, suffix in files.items()]
