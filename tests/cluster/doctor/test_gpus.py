"""GPUs, their driver, and whether torch can use them; the probe is run on what is here."""

import dataclasses
from pathlib import Path

import pytest
import torch

from resscale.cluster.doctor.gpus import (
    GpuFacts,
    check_devices,
    has_code_for,
    probe_gpus,
    read_driver,
)

H100 = GpuFacts(
    built_for="13.0",
    driver="580.65.06",
    num_devices=2,
    visible=("NVIDIA H100", "NVIDIA H100"),
    capabilities=((9, 0), (9, 0)),
    architectures=("sm_80", "sm_90"),
    free_share=((0, 0.99), (1, 0.99)),
)
NONE = GpuFacts(built_for=None)


def test_gpus_that_torch_can_use_are_well() -> None:
    (found,) = check_devices(H100, "auto")
    assert (found.level, found.text) == ("ok", "2 × NVIDIA H100, driver 580.65.06, CUDA 13.0")


def test_a_machine_without_gpus_trains_on_cpus() -> None:
    (found,) = check_devices(NONE, "auto")
    assert (found.level, found.text) == ("ok", "none here: training is on CPUs")


def test_gpus_are_not_looked_at_where_training_is_on_cpus() -> None:
    assert check_devices(dataclasses.replace(H100, driver="100.0"), "cpu")[0].level == "ok"


@pytest.mark.parametrize(
    ("built_for", "driver", "is_old"),
    [
        ("13.0", "579.99", True),  # 13.x needs 580
        ("13.0", "580.65.06", False),
        ("12.8", "524.10", True),  # 12.x needs 525
        ("12.8", "525.60.13", False),
    ],
)
def test_a_driver_too_old_for_torch_s_cuda_fails(built_for: str, driver: str, is_old: bool) -> None:
    found = check_devices(dataclasses.replace(H100, built_for=built_for, driver=driver), "auto")
    assert any(f.level == "fail" and "older" in f.text for f in found) == is_old


def test_a_torch_for_cpus_beside_gpus_fails() -> None:
    (found,) = check_devices(GpuFacts(driver="580.1", num_devices=8), "auto")
    assert found.level == "fail"
    assert found.text == "8 NVIDIA devices are here, and this torch is built for CPUs alone"


def test_gpus_that_torch_does_not_see_fail_with_cuda_s_words() -> None:
    facts = GpuFacts("13.0", "580.1", 8, why_not="No CUDA GPUs are available")
    (found,) = check_devices(facts, "auto")
    assert found.level == "fail"
    assert "torch sees no GPU (No CUDA GPUs are available)" in found.text


def test_asking_for_gpus_where_there_are_none_fails() -> None:
    assert check_devices(dataclasses.replace(NONE, built_for="13.0"), "gpu")[0].level == "fail"
    assert check_devices(NONE, "gpu")[0].level == "fail"


def test_memory_that_others_hold_is_warned_of() -> None:
    (found,) = check_devices(dataclasses.replace(H100, free_share=((1, 0.4),)), "auto")
    assert (found.level, found.text) == ("warn", "other processes hold memory: 60% of GPU 1")


def test_a_gpu_that_torch_has_no_code_for_fails() -> None:
    old = dataclasses.replace(H100, capabilities=((9, 0), (7, 0)))
    (found,) = check_devices(old, "auto")
    assert found.level == "fail"
    assert "compute capability 7.0, and this torch has code for sm_80, sm_90" in found.text


def test_different_gpus_in_a_node_are_warned_of() -> None:
    (found,) = check_devices(dataclasses.replace(H100, visible=("A", "B")), "auto")
    assert found.level == "warn"
    assert "different GPUs in one node: 1 × A, 1 × B" in found.text


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((9, 0), ("sm_90",), True),
        ((8, 9), ("sm_86",), True),  # a later minor of the same major
        ((8, 0), ("sm_86",), False),
        ((9, 0), ("sm_86",), False),
        ((12, 0), ("compute_90",), True),  # compiled by the driver
        ((7, 0), ("compute_90",), False),
        ((9, 0), ("sm_90a",), True),
        ((9, 0), (), False),
    ],
)
def test_machine_code_serves_its_major_and_intermediate_code_all_that_come_later(
    capability: tuple[int, int], architectures: tuple[str, ...], runs: bool
) -> None:
    assert has_code_for(capability, architectures) == runs


def test_the_driver_is_read_from_the_kernel_s_file(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert read_driver(file) is None
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n"
        "GCC version:  gcc version 12.2.0\n"
    )
    assert read_driver(file) == "580.65.06"


def test_the_probe_sees_what_torch_sees() -> None:
    facts = probe_gpus()
    assert facts.built_for == torch.version.cuda
    assert len(facts.visible) == torch.cuda.device_count()
    assert check_devices(facts, "auto")
