"""All that one process can look at by itself, with nobody's help."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from resscale.cluster.doctor import (
    address,
    cpus,
    gpus,
    limits,
    placement,
    shards,
    storage,
    versions,
)
from resscale.cluster.doctor.finding import Finding, of_error
from resscale.cluster.doctor.placement import Placement
from resscale.cluster.doctor.prepared import Prepared
from resscale.cluster.environment import Launch
from resscale.errors import UserInputError


@dataclass(frozen=True)
class Surroundings:
    """What the checks look at.

    Args:
        launch: how this process was started.
        world_size: processes that a launcher has started; 1 by hand.
        name: what other nodes call this one.
        command: the words of this call.
        folder: where runs are to lie.
        prepared: the configuration; None where there is none.
    """

    launch: Launch
    world_size: int
    name: str
    command: Sequence[str]
    folder: Path
    prepared: Prepared | None = None

    @property
    def local_rank(self) -> int:
        """Number of this rank on its node; under torchrun to be taken modulo its GPUs."""
        job = self.launch.srun
        return self.launch.rank if job is None else job.local_rank


@dataclass
class LocalResult:
    """What a process has found by itself.

    Args:
        findings: in the order of the checks.
        facts: what must be the same on all ranks; see `alike`.
        placement: the ranks.
        num_workers: reading processes that a rank will have.
        cpus: that a rank can count on.
        local_rank: see `Surroundings`.
        address: to be judged when ranks have met, or have not.
        data_is_well: shards can be read and fit the ranks.
    """

    placement: Placement
    num_workers: int
    cpus: int
    local_rank: int = 0
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    address: address.AddressFacts | None = None
    data_is_well: bool = False


def look_around(here: Surroundings, is_wanted: Callable[[str], bool]) -> LocalResult:
    """Run the checks that one process can.

    Args:
        here: what they look at.
        is_wanted: tells whether a check of this name is to be run.
    """
    launch, prepared = here.launch, here.prepared
    accelerator = "auto" if prepared is None else prepared.accelerator
    asked = (1, "auto") if prepared is None else (prepared.num_nodes, prepared.devices)
    job = launch.slurm
    gpu_facts = gpus.probe_gpus(here.local_rank if here.world_size > 1 else None)
    visible = 0 if accelerator == "cpu" else len(gpu_facts.visible)
    ranks = placement.find_placement(launch, here.world_size, *asked, visible)
    cpu_facts = cpus.probe_cpus()
    per_task = None if job is None else job.cpus_per_task or 1
    share = cpus.cpus_per_rank(cpu_facts, ranks.per_node, per_task)
    workers = 0 if prepared is None else prepared.num_workers(share)
    result = LocalResult(ranks, workers, share, here.local_rank)
    add = result.findings.extend
    if is_wanted(versions.NAME):
        installed = versions.installed_versions()
        result.facts["versions"] = versions.describe(installed)
        if prepared is not None:
            result.facts["decoder"] = prepared.data.decoder_name
        add(versions.check_versions(installed, versions.required_versions()))
    if is_wanted(placement.NAME):
        add(
            placement.check_placement(
                launch, ranks, asked, len(gpu_facts.visible), accelerator, here.command
            )
        )
    if is_wanted(gpus.NAME):
        if gpu_facts.visible:
            counts = Counter(gpu_facts.visible)
            result.facts["gpus"] = ", ".join(f"{n} × {name}" for name, n in counts.items())
        add(gpus.check_devices(gpu_facts, accelerator))
    if is_wanted(address.NAME):
        result.address = address.probe_address(here.name)
    if is_wanted(cpus.NAME):
        asked_workers = None if prepared is None else prepared.data.num_workers
        add(cpus.check_cpus(cpu_facts, ranks.per_node, asked_workers, per_task))
    batches = None if prepared is None else prepared.batches(ranks, workers)
    if is_wanted(limits.SHARED_MEMORY):
        add(limits.check_shared_memory(*limits.probe_shared_memory(), batches))
    if is_wanted(limits.OPEN_FILES):
        add(limits.check_open_files(*limits.probe_open_files(), batches))
    if is_wanted(storage.NAME):
        size = None if prepared is None else prepared.checkpoint_bytes()
        keep_last = 0 if prepared is None else prepared.keep_last
        add(storage.check_storage(storage.probe_storage(here.folder, size), size, keep_last))
    if prepared is not None:
        _look_at_data(prepared, result, is_wanted(shards.NAME))
    return result


def _look_at_data(prepared: Prepared, result: LocalResult, is_wanted: bool) -> None:
    """Look at the shards: other checks need to know, too, whether they can be read."""
    found = shards.probe_data(
        prepared.data, prepared.splits, prepared.module.num_classes, result.placement
    )
    result.facts.update(config=prepared.digest)
    if found.fingerprint:
        result.facts["data"] = found.fingerprint
    findings = shards.check_data(found, result.placement, prepared.data.partitions)
    for size in prepared.data.image_sizes:
        try:
            prepared.module.check_image_size(size)
        except UserInputError as error:
            findings = [f for f in findings if f.level != "ok"] + [of_error(shards.NAME, error)]
    result.data_is_well = not any(finding.level == "fail" for finding in findings)
    if is_wanted:
        result.findings.extend(dict.fromkeys(findings))
