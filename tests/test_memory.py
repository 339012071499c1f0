"""`benchmarks/memory.py`: the arithmetic of states, and activations that a real process shows."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    """The script, which is no part of the package."""
    spec = importlib.util.spec_from_file_location("memory_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> list[list[str]]:
    """Run the script; return the cells of every line of its tables."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    lines = [
        line for line in done.stdout.splitlines() if line.startswith("| ") and "---" not in line
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("ranks", "stage", "expected"),
    [
        # 1000 float32 values are 4000 bytes; a share of 8 is 500.
        (1, 0, 3 * 4000),  # parameters, gradients, momentum
        (8, 0, 3 * 4000),
        (8, 1, 2 * 4000 + 2 * 500),  # the optimizer's copy and momentum are shared out
        (8, 2, 4000 + 3 * 500),  # and the gradients
        (8, 3, 4000 + 4 * 500),  # and the parameters, which are gathered for the step
        (1, 1, 4 * 4000),
        (1, 2, 4 * 4000),
        (1, 3, 5 * 4000),
    ],
)
def test_a_rank_keeps_what_its_stage_does_not_share_out(
    memory: ModuleType, ranks: int, stage: int, expected: int
) -> None:
    assert memory.states_on(1000, ranks, stage).on_device == expected


def test_zero_3_that_gives_parameters_back_keeps_shares_alone(memory: ModuleType) -> None:
    assert memory.states_on(1000, 8, 3, release_gathered=True).on_device == 4 * 500


def test_offload_moves_copies_momentum_and_gradient_shares_to_the_host(memory: ModuleType) -> None:
    states = memory.states_on(1000, 8, 2, offload_optimizer=True)
    assert states.on_device == 4000
    assert states.host == 4 * 500


def test_zero_on_one_rank_costs_more_than_a_single_device(memory: ModuleType) -> None:
    single = memory.states_on(1000, 1, 0).on_device
    assert all(memory.states_on(1000, 1, stage).on_device > single for stage in (1, 2, 3))


@pytest.mark.parametrize(
    ("ranks", "stage", "offload"), [(8, 4, False), (0, 1, False), (8, 0, True)]
)
def test_what_does_not_exist_is_refused(
    memory: ModuleType, ranks: int, stage: int, offload: bool
) -> None:
    with pytest.raises(ValueError, match=f"stage {stage} on {ranks} ranks"):
        memory.states_on(1000, ranks, stage, offload_optimizer=offload)


def test_each_map_that_backward_needs_is_counted_once(memory: ModuleType) -> None:
    # Of an 8x8 image with 3 channels: the image, and per convolution its output (BN keeps it) and
    # the ReLU's: 3 of 16 channels on 64 pixels, 2 of 32 on 16, 2 of 64 on 4; the pooled 64, and
    # 1000 log-probabilities. Values of 4 bytes, and a label of 8.
    values = 3 * 64 + 2 * (3 * 16 * 64 + 2 * 32 * 16 + 2 * 64 * 4) + 64 + 1000
    saved = memory.saved_for_backward("plain8_cifar", 8, bf16=False)
    assert saved.per_image == 4 * values + 8


def test_under_autocast_maps_are_halved_and_weights_have_copies(memory: ModuleType) -> None:
    fp32 = memory.saved_for_backward("plain8_cifar", 8, bf16=False)
    bf16 = memory.saved_for_backward("plain8_cifar", 8, bf16=True)
    # The loss is computed in float32: its 1000 log-probabilities and the label stay.
    assert bf16.per_image - 4008 == pytest.approx((fp32.per_image - 4008) / 2, rel=0.01)
    # 7 convolutions of 3·16, 2 × 16·16, 16·32, 32·32, 32·64, 64·64, each of 9 taps, and the last
    # layer's 64·1000, in 2 bytes; its bias is not needed for backward.
    weights = 9 * (3 * 16 + 2 * 16 * 16 + 16 * 32 + 32 * 32 + 32 * 64 + 64 * 64) + 64_000
    assert bf16.fixed == pytest.approx(2 * weights, rel=0.01)
    assert fp32.fixed < 0.01 * bf16.fixed


def test_a_field_of_the_process_s_status_is_read_in_bytes(memory: ModuleType) -> None:
    assert (
        memory.resident_bytes("Name:\tpython\nVmHWM:\t   12 kB\nVmRSS:\t   3 kB\n", "VmRSS") == 3072
    )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc, as on Linux")
def test_a_real_process_grows_by_what_is_computed() -> None:
    cells = run("--measure", "plain8_cifar", "--image_size", "32", "--batches", "64", "320")[-1]
    computed, behind, peak = (float(cell) for cell in cells[2:5])
    assert behind == pytest.approx(computed, rel=0.15)
    assert peak >= 0.9 * computed


def test_the_tables_have_a_row_per_net() -> None:
    rows = run("--nets", "resnet50", "resnet18", "--image_size", "64")
    assert [row[0] for row in rows] == ["net", "resnet50", "resnet18"] * 2
    # 25,557,032 values of 4 bytes, three times, are 292 MiB (torchvision's count).
    assert rows[1][1:3] == ["25.56", "292"]
