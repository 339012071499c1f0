"""The benchmarks of `resscale plan`: published scaling, rates of nets, the table, memory."""

from dataclasses import replace

import plan_memory
import plan_published
import plan_rates
import plan_table
import pytest

from resscale.models.meta import create_on_meta
from resscale.report.plan_request import Training
from resscale.report.plan_scaling import layers_of
from resscale.report.plan_speed import BYTES, FACTORS, OPERATIONS, ImageCost


def test_published_scaling_is_reproduced_within_15_percent() -> None:
    layers = layers_of(create_on_meta("resnet50"), 224)
    lines, worst = plan_published.published_table(layers)
    assert len(lines) == 2 + len(plan_published.POINTS)
    assert worst < plan_published.TOLERANCE
    # The rows of several nodes are predicted: nothing was calibrated on them.
    assert not any(p.is_calibration for p in plan_published.POINTS if p.network is not None)
    several = [p.source for p in plan_published.POINTS if p.network is not None]
    assert several == ["Goyal", "MLPerf", "MLPerf", "Sony"]


def test_a_slower_network_is_seen_in_the_published_runs() -> None:
    layers = layers_of(create_on_meta("resnet50"), 224)
    goyal = next(point for point in plan_published.POINTS if point.source == "Goyal")
    slow = replace(goyal, network="5Gb")
    assert plan_published.modelled_efficiency(slow, layers) < 0.5


def test_the_fit_finds_the_factors_that_made_the_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    costs = {("a", 1): ImageCost(10**9, 10**7), ("b", 1): ImageCost(5 * 10**9, 10**7)}
    rates = {key: 1 / cost.seconds_on(plan_rates.GPU) for key, cost in costs.items()}
    monkeypatch.setattr(plan_rates, "PUBLISHED", rates)
    assert plan_rates.fit(costs) == pytest.approx((OPERATIONS, BYTES))


def test_every_published_net_has_its_factor() -> None:
    assert {name for name, _ in plan_rates.PUBLISHED} == set(FACTORS)
    published = plan_rates.PUBLISHED["resnet18", 224] / plan_rates.PUBLISHED["resnet50", 224]
    costs = [plan_rates.cost_of(name, 224) for name in ("resnet18", "resnet50")]
    modelled = costs[1].seconds_on(plan_rates.GPU) / costs[0].seconds_on(plan_rates.GPU)
    assert published / modelled == pytest.approx(FACTORS["resnet18"], abs=1e-3)


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "fitted"),
    [
        (256, 32, 8, (256, 32)),
        (256, 32, 1, (256, 32)),
        (256, 32, 32, (1024, 32)),  # 8 images for each would be another micro-batch
        (2048, None, 8, (2048, None)),
        (1024, None, 256, (8192, 32)),  # 4 images each
    ],
)
def test_a_recipe_grows_to_a_micro_batch_per_gpu(
    batch: int, micro: int | None, ranks: int, fitted: tuple[int, int | None]
) -> None:
    recipe = Training(global_batch_size=batch, micro_batch_size=micro)
    found = plan_table.fitted(recipe, ranks)
    assert (found.global_batch_size, found.micro_batch_size) == fitted


def test_the_classifier_s_real_step_takes_the_computed_memory() -> None:
    case = plan_memory.Case("resnet18", 24, 64, is_bf16=False, is_channels_last=True)
    # 40 MiB of maps beside 178 of weights, gradients, momentum and the update's copy.
    measured = plan_memory.allocator_bytes(case)
    assert plan_memory.computed_bytes(case) == pytest.approx(measured, rel=0.1)
