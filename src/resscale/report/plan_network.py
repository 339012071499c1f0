"""A node's network by name: how much it sends, over how many adapters."""

from __future__ import annotations

import re
from dataclasses import dataclass

from resscale.errors import UserInputError, nearest
from resscale.report.plan_scaling import GIGABIT, Cluster

LINK_EFFICIENCY = 0.8
"""Share of a link's rate that gradients get: assumed; NCCL's own tests on NVLink and InfiniBand
reach about that."""

# Gb/s of one port, in each direction. InfiniBand's generations with 4 lanes (IBTA roadmap), HPE's
# Slingshot 11, and the sum of all adapters of two of AWS's instances.
NAMED = {
    "ib-fdr": 56,
    "ib-edr": 100,
    "ib-hdr100": 100,
    "ib-hdr": 200,
    "ib-ndr200": 200,
    "ib-ndr": 400,
    "ib-xdr": 800,
    "slingshot": 200,
    "efa-p4d": 400,
    "efa-p5": 3200,
}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:g|gb|gbe|gbps|gbit|gb/s|gbit/s)", re.IGNORECASE)
_COUNT = re.compile(r"(\d+)\s*[x×*]\s*(.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Network:
    """What links a node to the others.

    Args:
        name: as it was given.
        gigabits: per second of one adapter, in each direction.
        adapters: of a node.
    """

    name: str
    gigabits: float
    adapters: int = 1

    @property
    def node_bytes_per_s(self) -> float:
        """What a node's adapters could send together."""
        return self.gigabits * self.adapters * GIGABIT

    def __str__(self) -> str:
        unit = "adapter" if self.adapters == 1 else "adapters"
        return f"{self.adapters} {unit} of {self.gigabits:g} Gb/s per node"


def parse_network(text: str, adapters: int | None = None) -> Network:
    """Return the network that a user means: `400Gb`, `8x400Gb`, `ib-ndr`, `8xib-ndr`, `100GbE`.

    Args:
        text: the rate of one adapter, or its name; a number and an x before it count adapters.
        adapters: of a node; None: what the text says, else 1.

    Raises:
        UserInputError: it cannot be read, says two numbers of adapters, or a rate of 0.
    """
    counted = _COUNT.fullmatch(text.strip())
    said = int(counted[1]) if counted else None
    name = (counted[2] if counted else text).strip().lower()
    if said is not None and adapters not in (None, said):
        raise UserInputError(
            f"--network {text} says {said} adapters and --nics-per-node {adapters}: give one of "
            f"both."
        )
    count = adapters or said or (1 if adapters is None and said is None else 0)
    if rate := _RATE.fullmatch(name):
        gigabits = float(rate[1])
    else:
        short = {key.removeprefix("ib-"): key for key in NAMED}
        gigabits = NAMED.get(short.get(name.replace("_", "-"), name.replace("_", "-")), 0)
        if not gigabits:
            raise UserInputError(
                f"--network {text} is neither a rate such as 400Gb or 8x400Gb nor one of "
                f"{', '.join(NAMED)}.{nearest(name, NAMED)}"
            )
    if gigabits <= 0 or count < 1:
        raise UserInputError(f"--network {text}: rate and adapters must be above 0.")
    return Network(text, gigabits, count)


def build_cluster(
    nodes: int, gpus_per_node: int, link_bytes_per_s: float, network: Network | None
) -> Cluster:
    """Return what an all-reduce goes over, at the rates that data get of it.

    Args:
        nodes: number of nodes.
        gpus_per_node: ranks of each.
        link_bytes_per_s: of a GPU inside its node, in each direction.
        network: between nodes; None for a single one.

    Raises:
        UserInputError: several nodes, and no network.
    """
    if nodes > 1 and network is None:
        raise UserInputError(
            f"--nodes {nodes} needs --network: what links the nodes, such as 400Gb, 8x400Gb or "
            f"ib-ndr."
        )
    node_bytes_per_s = network.node_bytes_per_s if network is not None else 1.0
    return Cluster(
        nodes,
        LINK_EFFICIENCY * node_bytes_per_s,
        gpus_per_node,
        LINK_EFFICIENCY * link_bytes_per_s,
    )
