"""An examination: what each rank finds by itself, and what only several can find together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.distributed import DistError

from resscale.cluster.doctor import clock, gathering, links, rates
from resscale.cluster.doctor.address import check_address
from resscale.cluster.doctor.alike import check_alike
from resscale.cluster.doctor.finding import Finding, Held, Rank, merge, of_error, ranges
from resscale.cluster.doctor.gathering import Gathering
from resscale.cluster.doctor.interfaces import check_interface, speeds_here
from resscale.cluster.doctor.local_checks import LocalResult, Surroundings, look_around
from resscale.cluster.doctor.prepared import Prepared
from resscale.cluster.doctor.rate_probe import (
    PATIENCE_S,
    Share,
    build_probe_loader,
    measure_loader,
    measure_step,
)
from resscale.errors import ResscaleError, UserInputError
from resscale.training.strategy import device_type

# More ranks than these of one machine tell nothing new about its own links.
_MOST_ON_ONE_HOST = 4
_EXCHANGE_S = 60.0


@dataclass(frozen=True)
class Options:
    """What the user chose.

    Args:
        is_wanted: tells whether a check of this name is to be run.
        seconds: that each rate is measured for.
        timeout_s: how long ranks wait for each other.
    """

    is_wanted: Callable[[str], bool]
    seconds: float
    timeout_s: float


def examine_alone(here: Surroundings, me: Rank, options: Options) -> list[Held]:
    """Look at everything that one process can find.

    Args:
        here: what it looks at.
        me: this process.
        options: what the user chose.
    """
    result = look_around(here, options.is_wanted)
    findings = [*result.findings, *_judge_address(result, has_met=False)]
    if here.prepared is not None and result.data_is_well and options.is_wanted(rates.NAME):
        measured = measure_rates(here.prepared, result, me.number, options.seconds)
        findings += rates.judge_rates({me: measured}, here.prepared.images())
    return merge({me: findings})


def examine_together(
    here: Surroundings, meet: Callable[[], Gathering], me: Rank, options: Options
) -> list[Held] | None:
    """Look at everything on all ranks; return it in rank 0, and in a rank that cannot find it.

    Args:
        here: what this rank looks at.
        meet: gathers the ranks.
        me: this rank.
        options: what the user chose.
    """
    # Before anything else: ranks that are not there are waited for meanwhile.
    try:
        gathered = meet()
        roll = gathered.call_the_roll(options.timeout_s)
    except (UserInputError, DistError, RuntimeError, OSError) as error:
        result = look_around(here, options.is_wanted)
        own = [*result.findings, *_judge_address(result, has_met=False)]
        return merge({me: [*own, _lost(me, error)]})
    result = look_around(here, options.is_wanted)
    is_whole = all(finding.level == "ok" for finding in roll)
    own = [*result.findings, *_judge_address(result, has_met=is_whole)]
    common = list(roll) if options.is_wanted(gathering.NAME) or not is_whole else []
    facts = gathered.collect("facts", result.facts, options.timeout_s)
    if facts is not None and options.is_wanted("alike"):
        common += check_alike(facts)
    if is_whole and options.is_wanted(clock.NAME):
        common += _compare_clocks(gathered, here.name, options.timeout_s)
    if is_whole and options.is_wanted(links.NAME):
        own_links, all_links = _measure_links(gathered, options.timeout_s)
        own += check_interface((link.interface for link in own_links), speeds_here())
        common += links.judge_links(all_links)
    if here.prepared is not None and options.is_wanted(rates.NAME):
        common += _compare_rates(gathered, here.prepared, result, options)
    found = gathered.collect("findings", [asdict(f) for f in own], options.timeout_s)
    gathered.end(options.timeout_s)
    if found is None:
        return None
    by_rank = {rank: [Finding(**f) for f in findings] for rank, findings in found.items()}
    lost_ranks = [rank.number for rank in gathered.present if rank not in by_rank]
    if lost_ranks:
        common += [_gone(lost_ranks)]
    # What holds for the job holds for each of its ranks.
    return merge({rank: [*findings, *common] for rank, findings in by_rank.items()})


def measure_rates(
    prepared: Prepared, result: LocalResult, rank: int, seconds: float
) -> rates.RateFacts:
    """Measure a rank's loader, then its step.

    Args:
        prepared: the configuration.
        result: what this rank has found by itself.
        rank: its number.
        seconds: for each.
    """
    share = Share(rank, result.placement.world_size, result.num_workers)
    device = _device(prepared, result.local_rank)
    faults: list[tuple[str, str]] = []
    loader_per_s = step = None
    try:
        loader = build_probe_loader(prepared.data, share, on_gpu=device.type == "cuda")
        loader_per_s, batch = measure_loader(loader, share.num_workers, seconds)
        # Its processes would take CPUs from the steps.
        del loader
        step = measure_step(prepared.module, batch, device, prepared.dtype, seconds)
    except torch.cuda.OutOfMemoryError:
        size = prepared.data.plan(share.world_size).micro_batch_size
        faults.append(
            (
                f"a micro-batch of {size} does not fit into the memory of "
                f"{torch.cuda.get_device_name(device)}",
                f"set --data.micro_batch_size {max(1, size // 2)}, which accumulates more",
            )
        )
    except ResscaleError as error:
        finding = of_error(rates.NAME, error)
        faults.append((finding.text, finding.remedy))
    return rates.RateFacts(
        loader_per_s,
        step.images_per_s if step is not None else None,
        share.num_workers,
        result.cpus,
        step.rows if step is not None else 0,
        tuple(faults),
    )


def _compare_rates(
    gathered: Gathering, prepared: Prepared, result: LocalResult, options: Options
) -> list[Finding]:
    # A rank whose data are wrong has said so; the others would measure an idle machine.
    well = gathered.collect("data_is_well", result.data_is_well, options.timeout_s)
    if well is not None:
        gathered.tell("measure_rates", all(well.values()) and len(well) == len(gathered.present))
    if not gathered.hear("measure_rates", 2 * options.timeout_s):
        return []
    measured = measure_rates(prepared, result, gathered.rank.number, options.seconds)
    patience = options.timeout_s + PATIENCE_S + 4 * options.seconds
    found = gathered.collect("rates", asdict(measured), patience)
    if found is None:
        return []
    facts = {rank: _rate_facts(values) for rank, values in found.items()}
    return rates.judge_rates(facts, prepared.images())


def _rate_facts(values: Mapping[str, Any]) -> rates.RateFacts:
    return rates.RateFacts(**{**values, "faults": tuple(tuple(f) for f in values["faults"])})


def _compare_clocks(gathered: Gathering, name: str, timeout_s: float) -> list[Finding]:
    leaders = _leaders(gathered)
    if gathered.rank.number == 0:
        with clock.ClockServer() as server:
            gathered.tell("clock", [name, server.port])
            come = gathered.collect("offset", None, timeout_s) or {}
    else:
        server_name, port = gathered.hear("clock", timeout_s) or ("", 0)
        offset = None
        if gathered.rank in leaders and port:
            try:
                offset = asdict(clock.measure_offset(server_name, port))
            except OSError:
                # The links say what is wrong between these hosts.
                offset = None
        gathered.collect("offset", offset, timeout_s)
        return []
    offsets = {rank: clock.Offset(**value) for rank, value in come.items() if value}
    return clock.judge_clocks(offsets)


def _measure_links(
    gathered: Gathering, timeout_s: float
) -> tuple[list[links.Link], list[links.Link]]:
    """Return this rank's links, and in rank 0 those of all."""
    leaders = _leaders(gathered)
    members = leaders if len(leaders) > 1 else gathered.present[:_MOST_ON_ONE_HOST]
    own: list[links.Link] = []
    if gathered.rank in members:
        own = links.measure_links(gathered.store, members, members.index(gathered.rank))
    come = gathered.collect("links", [asdict(link) for link in own], timeout_s + _EXCHANGE_S)
    everything = [
        links.Link(**{**link, "a": Rank(**link["a"]), "b": Rank(**link["b"])})
        for found in (come or {}).values()
        for link in found
    ]
    return own, everything


def _leaders(gathered: Gathering) -> list[Rank]:
    """Return the first rank of each host."""
    first: dict[str, Rank] = {}
    for rank in sorted(gathered.present, key=lambda rank: rank.number):
        first.setdefault(rank.host, rank)
    return list(first.values())


def _judge_address(result: LocalResult, *, has_met: bool) -> list[Finding]:
    if result.address is None:
        return []
    return check_address(result.address, result.placement.num_nodes, has_met)


def _device(prepared: Prepared, local_rank: int) -> torch.device:
    kind = device_type(prepared.accelerator)
    if kind != "cuda":
        return torch.device(kind)
    return torch.device(kind, local_rank % torch.cuda.device_count())


def _gone(numbers: list[int]) -> Finding:
    return Finding(
        gathering.NAME,
        "fail",
        f"ranks {ranges(numbers)} have gone during the examination",
        "see what they have said on their nodes",
    )


def _lost(me: Rank, error: Exception) -> Finding:
    if isinstance(error, UserInputError):
        return of_error(gathering.NAME, error)
    said = str(error).partition("\n")[0].rstrip(".")
    return Finding(
        gathering.NAME,
        "fail",
        f"rank {me.number} on {me.host} has not found rank 0: {said}",
        "see whether this node reaches rank 0's, and shares --runs_dir with it",
    )
