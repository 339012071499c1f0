"""The data of a run as this node sees it, and whether it fits the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from resscale.cluster.doctor.finding import Finding, in_units, of_error
from resscale.cluster.doctor.placement import Placement
from resscale.data.datamodule import ShardDataModule
from resscale.errors import UserInputError

NAME = "data"


@dataclass(frozen=True)
class DataFacts:
    """What training is to read.

    Args:
        described: a phrase per split: samples, shards and bytes.
        faults: what was refused.
        num_shards: of the training data; 0 where they cannot be read.
        plan: batch, micro-batch and accumulation in words.
        fingerprint: of all manifests.
    """

    described: tuple[str, ...] = ()
    faults: tuple[UserInputError, ...] = ()
    num_shards: int = 0
    plan: str = ""
    fingerprint: str = ""


def check_data(facts: DataFacts, placement: Placement, partitions: int) -> list[Finding]:
    """Judge the data.

    Args:
        facts: what this node sees.
        placement: the ranks.
        partitions: `data.partitions`.
    """
    findings = [of_error(NAME, fault) for fault in facts.faults]
    nodes = placement.num_nodes
    if facts.num_shards and facts.num_shards < nodes:
        findings.append(
            Finding(
                NAME,
                "warn",
                f"{facts.num_shards} training shards for {nodes} nodes: nodes read the same shards",
                "pack more and smaller ones with `resscale pack --shard_mb`",
            )
        )
    if partitions > 1 and partitions % nodes:
        findings.append(
            Finding(
                NAME,
                "warn",
                f"data.partitions={partitions} is no multiple of {nodes} nodes: nodes cannot keep "
                f"to shards of their own",
                f"set --data.partitions {nodes}",
            )
        )
    return findings or [Finding(NAME, "ok", "; ".join((*facts.described, facts.plan)))]


def probe_data(
    data: ShardDataModule,
    splits: Sequence[str],
    num_classes: int,
    placement: Placement,
) -> DataFacts:
    """Read the manifests and look at every shard's size.

    Args:
        data: the user's options.
        splits: "train", "val".
        num_classes: of the network.
        placement: the ranks that are to share the batches.
    """
    described, faults, prints, num_shards, plan = [], [], [], 0, ""
    for split in splits:
        try:
            manifest = data.manifest(split)
            manifest.check_labels(num_classes)
        except UserInputError as error:
            faults.append(error)
            continue
        unit = "shard" if len(manifest.shards) == 1 else "shards"
        described.append(
            f"{split} {manifest.num_samples:,} samples in {len(manifest.shards):,} {unit} of "
            f"{in_units(manifest.num_bytes)}"
        )
        prints.append(f"{split} {manifest.fingerprint}")
        if split == "train":
            num_shards = len(manifest.shards)
    if num_shards:
        try:
            steps = data.order().num_steps
            plan = f"{data.plan(placement.world_size)}, {steps:,} steps per epoch"
        except UserInputError as error:
            faults.append(error)
    return DataFacts(tuple(described), tuple(faults), num_shards, plan, ", ".join(prints))
