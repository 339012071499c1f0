"""What must be the same on all ranks."""

from __future__ import annotations

from collections.abc import Mapping

from resscale.cluster.doctor.finding import Finding, Level, Rank, short_list

# key -> (what differs, what to do)
REMEDIES = {
    "versions": (
        "versions",
        "use one environment on all nodes: a container, or a folder that they share",
    ),
    "gpus": (
        "GPUs",
        "choose nodes of one kind with --constraint or --gres; the slowest sets the pace",
    ),
    "data": (
        "data",
        "copy the same shards to all nodes, or read them from a folder that they share",
    ),
    "decoder": (
        "decoders",
        "install alike on all nodes (the native decoder wants a C compiler there), or name one "
        "that all have with --data.decoder",
    ),
    "config": ("configuration", "give all nodes the same YAML file"),
}


def check_alike(facts: Mapping[Rank, Mapping[str, str]]) -> list[Finding]:
    """Return a fault for each fact that is not the same on all ranks.

    Args:
        facts: key of `REMEDIES` -> value, by rank.
    """
    faults = []
    for key, (what, remedy) in REMEDIES.items():
        holders: dict[str, list[str]] = {}
        for rank, values in facts.items():
            if key in values:
                holders.setdefault(values[key], []).append(rank.host)
        if len(holders) < 2:
            continue
        # The rarest first: it is the odd one out.
        rarest = sorted(holders.items(), key=lambda item: len(item[1]))
        told = "; ".join(
            f"{value} on {short_list(list(dict.fromkeys(hosts)))}" for value, hosts in rarest[:3]
        )
        level: Level = "warn" if key == "gpus" else "fail"
        faults.append(Finding("alike", level, f"{what} differ between ranks: {told}", remedy))
    if faults or len(facts) < 2:
        return faults
    return [Finding("alike", "ok", f"{len(facts)} ranks have the same versions, GPUs and data")]
