"""What is particular to a cluster: partition, account, modules, container, network.

One YAML file for each cluster (`configs/cluster/NAME.yaml`), or options of `resscale submit`. The
batch script knows nothing of it: it reads a few variables that are made here.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from resscale.errors import UserInputError, nearest

SETUP_VARIABLE = "RESSCALE_SETUP"
WRAPPER_VARIABLE = "RESSCALE_WRAPPER"
SRUN_VARIABLE = "RESSCALE_SRUN_OPTIONS"
PYTHON_VARIABLE = "RESSCALE_PYTHON"
CACHE_VARIABLE = "RESSCALE_CACHE"

# Options of sbatch that have a variable, too, for who calls sbatch by hand.
_BY_HAND = {
    "partition": "SBATCH_PARTITION",
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "constraint": "SBATCH_CONSTRAINT",
    "reservation": "SBATCH_RESERVATION",
}


@dataclass(frozen=True)
class Site:
    """The settings of a cluster.

    Args:
        partition: where jobs go; None: SLURM's default, as for the next four.
        account: who pays.
        qos: quality of service.
        constraint: features that nodes must have.
        reservation: nodes set aside.
        gpu_type: such as "a100", where nodes have several sorts.
        exclusive: no other job on the nodes.
        cpus_per_task: CPUs of each task; None: a fair share of the node.
        modules: for `module load`.
        setup: shell commands behind them, such as `source .venv/bin/activate`.
        python: the interpreter; None: the one that submits, or python3 where anything above
            makes another known.
        container: an image that the ranks run in.
        container_tool: "apptainer", or "pyxis", whose srun has --container-image.
        container_options: words between the tool and the image, such as mounts.
        network_interface: what NCCL and gloo connect over, such as "ib0".
        scratch: a folder on each node's own disk, for copies of data.
        environment: more variables of the job.
        sbatch_options: more words for sbatch, such as "--mem=0".
        srun_options: more words for srun, such as "--mpi=none".
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    gpu_type: str | None = None
    exclusive: bool = False
    cpus_per_task: int | None = None
    modules: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    python: str | None = None
    container: str | None = None
    container_tool: str = "apptainer"
    container_options: tuple[str, ...] = ()
    network_interface: str | None = None
    scratch: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    sbatch_options: tuple[str, ...] = ()
    srun_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.container_tool not in ("apptainer", "pyxis"):
            raise UserInputError(
                f"container_tool={self.container_tool} is not apptainer or pyxis: name one of "
                f"them, or put another tool's words into srun_options."
                f"{nearest(self.container_tool, ('apptainer', 'pyxis'))}"
            )
        for word in (*self.srun_options, *self.container_options, self.container or ""):
            if len(word.split()) > 1:
                raise UserInputError(
                    f"{word!r} has a space in it, which the batch script takes for the end of a "
                    f"word: make two entries of it, or choose a path without spaces."
                )


def load_site(path: str | Path) -> Site:
    """Read a cluster's file.

    Raises:
        UserInputError: there is no such file, it is no YAML mapping, or an entry is wrong.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        beside = [str(other) for other in Path(path).parent.glob("*.yaml")]
        raise UserInputError(
            f"--cluster {path}: there is no such file; copy configs/cluster/gpu.yaml and fill it "
            f"in.{nearest(str(path), beside)}"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserInputError(
            f"--cluster {path} is not valid YAML: {' '.join(str(error).split())}."
        ) from error
    if not isinstance(entries, Mapping):
        raise UserInputError(f"--cluster {path} must hold lines such as `partition: gpu`.")
    return make_site(entries, f"--cluster {path}")


def make_site(entries: Mapping[str, Any], source: str) -> Site:
    """Check the entries, and return them as a `Site`; null stands for "not set".

    Args:
        entries: by the names of `Site`.
        source: where they come from, for messages.

    Raises:
        UserInputError: an unknown name, or a value of the wrong sort.
    """
    known = {entry.name: str(entry.type) for entry in fields(Site)}
    values: dict[str, Any] = {}
    for name, value in entries.items():
        if name not in known:
            raise UserInputError(
                f"{source}: {name!r} is not one of {', '.join(known)}.{nearest(str(name), known)}"
            )
        if value is not None:
            values[name] = _checked(name, value, known[name], source)
    return Site(**values)


def job_environment(site: Site) -> dict[str, str]:
    """Return the variables that a job of this site needs: the batch script's, and the ranks'."""
    variables: dict[str, str] = {}
    lines = [f"module load {shlex.join(site.modules)}"] if site.modules else []
    if lines or site.setup:
        variables[SETUP_VARIABLE] = " && ".join([*lines, *site.setup])
    srun_options = list(site.srun_options)
    if site.container is not None and site.container_tool == "pyxis":
        srun_options += [f"--container-image={site.container}", *site.container_options]
    elif site.container is not None:
        words = ("apptainer", "exec", "--nv", *site.container_options, site.container)
        variables[WRAPPER_VARIABLE] = " ".join(words)
    if srun_options:
        variables[SRUN_VARIABLE] = " ".join(srun_options)
    has_another = site.modules or site.setup or site.container
    variables[PYTHON_VARIABLE] = site.python or ("python3" if has_another else sys.executable)
    if site.scratch is not None:
        variables[CACHE_VARIABLE] = site.scratch
    if site.network_interface is not None:
        variables["NCCL_SOCKET_IFNAME"] = site.network_interface
        variables["GLOO_SOCKET_IFNAME"] = site.network_interface
    return {**variables, **site.environment}


def sbatch_flags(site: Site) -> list[str]:
    """Return the site's part of sbatch's words; tasks, GPUs and CPUs are the job's."""
    named = [(name, getattr(site, name)) for name in _BY_HAND]
    flags = [f"--{name}={value}" for name, value in named if value is not None]
    return [*flags, *(["--exclusive"] if site.exclusive else []), *site.sbatch_options]


def shell_exports(site: Site) -> str:
    """Return the settings as lines for a shell, for who calls sbatch by hand."""
    variables = {
        variable: value
        for name, variable in _BY_HAND.items()
        if (value := getattr(site, name)) is not None
    }
    if site.exclusive:
        variables["SBATCH_EXCLUSIVE"] = "exclusive"
    if site.cpus_per_task is not None:
        variables["SBATCH_CPUS_PER_GPU"] = str(site.cpus_per_task)
    lines = [
        f"export {k}={shlex.quote(v)}" for k, v in {**variables, **job_environment(site)}.items()
    ]
    if site.sbatch_options:
        lines.append(f"# and give sbatch these: {shlex.join(site.sbatch_options)}")
    return "\n".join(lines)


def _checked(name: str, value: Any, kind: str, source: str) -> Any:
    if kind.startswith("tuple"):
        parts = [value] if isinstance(value, str) else value
        if isinstance(parts, list | tuple) and all(isinstance(part, str) for part in parts):
            return tuple(parts)
        wanted = "a list of texts"
    elif kind.startswith("dict"):
        if isinstance(value, Mapping) and not any(
            isinstance(v, Mapping | list | None) for v in value.values()
        ):
            return {str(k): str(v) for k, v in value.items()}
        wanted = "lines `NAME: value`"
    elif kind.startswith("bool"):
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    elif kind.startswith("int"):
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        wanted = "a whole number above 0"
    else:
        if isinstance(value, str | int) and not isinstance(value, bool):
            return str(value)
        wanted = "text"
    raise UserInputError(f"{source}: {name}={value!r} must be {wanted}.")
