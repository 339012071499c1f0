"""GPUs, their driver, and whether torch can use them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from resscale.cluster.doctor.finding import Finding

NAME = "gpus"
# The oldest driver for each CUDA: docs.nvidia.com/deploy/cuda-compatibility, table of drivers.
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# Another process's memory on a GPU, past which it is not free for a run.
_TAKEN = 0.05


@dataclass(frozen=True)
class GpuFacts:
    """What this process sees.

    Args:
        built_for: CUDA that torch was built for, such as "13.0"; None: torch is for CPUs alone.
        driver: version of the kernel's NVIDIA driver; None where none is loaded.
        num_devices: NVIDIA devices that the kernel shows this process.
        visible: names of the GPUs that torch can use.
        capabilities: compute capability of each.
        architectures: that this torch has code for, such as "sm_90" or "compute_90".
        free_share: `(number, share of its memory that is free)` of the GPUs that nobody else of
            this run is to use.
        why_not: what CUDA said where torch sees none.
    """

    built_for: str | None = None
    driver: str | None = None
    num_devices: int = 0
    visible: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    architectures: tuple[str, ...] = ()
    free_share: tuple[tuple[int, float], ...] = ()
    why_not: str = ""


def check_devices(facts: GpuFacts, accelerator: str) -> list[Finding]:
    """Judge the GPUs of this process.

    Args:
        facts: what it sees.
        accelerator: "auto", "gpu" or "cpu": what is to train.
    """
    if accelerator == "cpu":
        return [Finding(NAME, "ok", "not used: trainer.accelerator=cpu")]
    faults = _driver(facts)
    if not facts.visible:
        return faults + _none_visible(facts, accelerator)
    for number, capability in enumerate(facts.capabilities):
        if not has_code_for(capability, facts.architectures):
            faults.append(
                Finding(
                    NAME,
                    "fail",
                    f"GPU {number} ({facts.visible[number]}) has compute capability "
                    f"{capability[0]}.{capability[1]}, and this torch has code for "
                    f"{', '.join(facts.architectures)}",
                    "install a torch build for this GPU",
                )
            )
    taken = [(number, 1 - free) for number, free in facts.free_share if free < 1 - _TAKEN]
    if taken:
        shares = ", ".join(f"{share:.0%} of GPU {number}" for number, share in taken)
        faults.append(
            Finding(
                NAME,
                "warn",
                f"other processes hold memory: {shares}",
                "end them (nvidia-smi lists them), or ask SLURM for the GPUs alone",
            )
        )
    counts = Counter(facts.visible)
    if len(counts) > 1:
        faults.append(
            Finding(
                NAME,
                "warn",
                f"different GPUs in one node: {_describe(facts)}; the slowest sets the pace",
                "choose nodes of one kind with --constraint or --gres",
            )
        )
    return faults or [
        Finding(
            NAME,
            "ok",
            f"{_describe(facts)}, driver {facts.driver or 'unknown'}, CUDA {facts.built_for}",
        )
    ]


def has_code_for(capability: tuple[int, int], architectures: tuple[str, ...]) -> bool:
    """Return whether a torch build runs on a GPU.

    Args:
        capability: the GPU's, major and minor.
        architectures: machine code ("sm_86": also for later minors of its major) and intermediate
            code ("compute_80": for all later GPUs).
    """
    for architecture in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", architecture)
        if found is None:
            continue
        made_for = (int(found[2]), int(found[3]))
        if found[1] == "compute" and made_for <= capability:
            return True
        if made_for[0] == capability[0] and made_for <= capability:
            return True
    return False


def probe_gpus(local_rank: int | None = None) -> GpuFacts:
    """Look at this process's GPUs.

    Args:
        local_rank: number of this process among the ranks of its node; None where it is alone.
            Looking at a GPU's memory takes some of it, so each rank looks at its own.
    """
    why_not = ""
    if torch.version.cuda is not None and not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            why_not = str(error).partition("\n")[0]
    count = torch.cuda.device_count()
    own = range(count) if local_rank is None or not count else [local_rank % count]
    memory = [(number, torch.cuda.mem_get_info(number)) for number in own]
    return GpuFacts(
        built_for=torch.version.cuda,
        driver=read_driver(Path("/proc/driver/nvidia/version")),
        num_devices=len(list(Path("/dev").glob("nvidia[0-9]*"))),
        visible=tuple(torch.cuda.get_device_name(number) for number in range(count)),
        capabilities=tuple(torch.cuda.get_device_capability(number) for number in range(count)),
        architectures=tuple(torch.cuda.get_arch_list()),
        free_share=tuple((number, free / total) for number, (free, total) in memory),
        why_not=why_not,
    )


def read_driver(file: Path) -> str | None:
    """Return the version of the loaded driver; None where there is none.

    Args:
        file: the kernel module's own, /proc/driver/nvidia/version.
    """
    if not file.is_file():
        return None
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", file.read_text())
    return found[1] if found else None


def _driver(facts: GpuFacts) -> list[Finding]:
    if facts.driver is None or facts.built_for is None:
        return []
    oldest = OLDEST_DRIVER.get(int(facts.built_for.partition(".")[0]))
    if oldest is None or int(facts.driver.partition(".")[0]) >= oldest:
        return []
    return [
        Finding(
            NAME,
            "fail",
            f"driver {facts.driver} is older than {oldest}, which CUDA {facts.built_for} needs",
            "update the driver, or install a torch build for an older CUDA",
        )
    ]


def _none_visible(facts: GpuFacts, accelerator: str) -> list[Finding]:
    present = facts.num_devices > 0 or facts.driver is not None
    if facts.built_for is None and (present or accelerator == "gpu"):
        what = f"{facts.num_devices} NVIDIA devices are here, and " if facts.num_devices else ""
        return [
            Finding(NAME, "fail", f"{what}this torch is built for CPUs alone",
                    "install the CUDA build of torch, or set --trainer.accelerator cpu")
        ]  # fmt: skip
    if present:
        said = f" ({facts.why_not})" if facts.why_not else ""
        return [
            Finding(NAME, "fail", f"an NVIDIA driver is loaded, and torch sees no GPU{said}",
                    "see whether nvidia-smi lists them and CUDA_VISIBLE_DEVICES names them, and "
                    "ask SLURM for them with --gpus-per-node")
        ]  # fmt: skip
    if accelerator == "gpu":
        return [
            Finding(NAME, "fail", "trainer.accelerator=gpu, and there is no NVIDIA driver here",
                    "run this on a machine with GPUs, or set --trainer.accelerator cpu")
        ]  # fmt: skip
    return [Finding(NAME, "ok", "none here: training is on CPUs")]


def _describe(facts: GpuFacts) -> str:
    return ", ".join(f"{count} × {name}" for name, count in Counter(facts.visible).items())
