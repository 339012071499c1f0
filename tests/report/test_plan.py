"""`resscale.report.plan`: a whole plan of small runs, and its text."""

import json
import math
from dataclasses import replace

import pytest

from resscale.errors import UserInputError
from resscale.report.plan import Plan, build_plan, render_plan
from resscale.report.plan_data import scaled_images
from resscale.report.plan_gpus import find_gpu
from resscale.report.plan_network import parse_network
from resscale.report.plan_request import Known, Machines, Training
from resscale.report.plan_text import plain_plan

SMALL = Training(
    model="resnet20_cifar",
    num_classes=10,
    sizes=(32,) * 4,
    eval_size=32,
    global_batch_size=128,
    micro_batch_size=32,
    images=scaled_images(10_000),
    num_val=1000,
)
ONE = Machines(find_gpu("a100"))
PAIR = Machines(find_gpu("a100"), 1, 2)
MEASURED = Known(images_per_s=1000.0)


@pytest.fixture(scope="module")
def plan() -> Plan:
    """One GPU whose rate was measured."""
    return build_plan(SMALL, ONE, MEASURED)


def test_hours_are_steps_and_evaluations(plan: Plan) -> None:
    # 10,000 // 128 = 78 steps an epoch of 128 images at 1,000 per second.
    assert plan.steps_per_epoch == 78
    assert plan.train_s == pytest.approx(4 * 78 * 0.128)
    # Forward alone is a third: 4 times 1,000 images in 1/3 ms each.
    assert plan.eval_s == pytest.approx(4 * 1000 / 3000)
    assert plan.hours * 3600 == pytest.approx((plan.train_s + plan.eval_s) / (1 - plan.lost_share))
    assert 0 < plan.lost_share < 1e-3  # a failure of one GPU in 5.8 years
    assert plan.cost_usd is None


def test_parameters_and_macs_are_the_net_s(plan: Plan) -> None:
    assert plan.num_parameters == 269_722  # 0.27M, He et al. 2015, table 6
    assert plan.phases[0].macs == pytest.approx(40.6e6, rel=0.01)
    assert plan.batches.accumulate == 4


def test_the_price_is_that_of_all_gpus() -> None:
    priced = build_plan(SMALL, PAIR, replace(MEASURED, usd_per_gpu_hour=3.0))
    assert priced.gpu_hours == pytest.approx(2 * priced.hours)
    assert priced.cost_usd == pytest.approx(6 * priced.hours)
    assert "USD at 3 USD per GPU-hour" in render_plan(priced)


def test_two_gpus_are_less_than_twice_as_fast(plan: Plan) -> None:
    pair = build_plan(SMALL, PAIR, MEASURED)
    assert 0.5 < pair.phases[0].step.efficiency < 1
    assert plan.train_s / 2 < pair.train_s < plan.train_s
    assert pair.memory.reserve.nccl > plan.memory.reserve.nccl == 0


def test_memory_is_the_largest_image_s_and_doubles_with_the_average() -> None:
    growing = replace(SMALL, sizes=(16, 16, 24, 32))
    memory = build_plan(growing, ONE, MEASURED).memory
    assert memory == build_plan(SMALL, ONE, MEASURED).memory
    averaged = build_plan(replace(SMALL, is_averaged=True), ONE, MEASURED).memory
    assert averaged.averaged == memory.weights


def test_smaller_images_are_trained_on_faster() -> None:
    plan = build_plan(replace(SMALL, sizes=(16, 16, 24, 32)), ONE, MEASURED)
    assert [(phase.image_size, phase.epochs) for phase in plan.phases] == [
        (16, 2),
        (24, 1),
        (32, 1),
    ]
    rates = [phase.rate.images_per_s for phase in plan.phases]
    # A quarter of the pixels is a quarter of operations and bytes, but for what the classifier has.
    assert rates[0] / rates[2] == pytest.approx(4, rel=0.02)
    assert rates[2] == 1000
    assert plan.largest.image_size == 32


@pytest.mark.parametrize(
    ("optimizer", "implementation", "values"),
    [("sgd", "auto", 1), ("lars", "auto", 1), ("adamw", "auto", 2), ("lamb", "auto", 2)],
)
def test_the_optimizer_s_state_is_counted(optimizer: str, implementation: str, values: int) -> None:
    training = replace(SMALL, optimizer=optimizer, implementation=implementation)
    assert training.state_values == values
    assert replace(training, momentum=0.0).state_values == (0 if values == 1 else 2)


def test_a_manifest_is_not_assumed_to_be_imagenet(plan: Plan) -> None:
    assert "assumed: no manifest is at hand" in render_plan(plan)
    known = replace(SMALL.images, is_assumed=False)
    assert "assumed: no" not in render_plan(build_plan(replace(SMALL, images=known), ONE, MEASURED))


def test_the_text_says_what_was_measured_and_what_was_not(plan: Plan) -> None:
    assert "1,000 images/s on one GPU, measured by you" in render_plan(plan)
    text = render_plan(build_plan(SMALL, ONE))
    assert "tabulated, not measured here" in text
    assert "Lambda's deeplearning-benchmark" in text
    # 32 images of a CIFAR net take less time than the launch of its kernels.
    assert "waiting for the host" in text
    assert "waiting for the host" not in render_plan(
        build_plan(replace(SMALL, is_compiled=True), ONE)
    )


def test_what_does_not_fit_is_said_with_what_does() -> None:
    large = replace(SMALL, sizes=(512,), global_batch_size=4096, micro_batch_size=4096)
    text = render_plan(build_plan(large, ONE, MEASURED))
    assert "DOES NOT FIT" in text
    assert "largest micro-batch" in text


def test_several_nodes_show_their_network_and_efficiency() -> None:
    nodes = Machines(find_gpu("h100"), 2, 2, network=parse_network("400Gb"))
    text = render_plan(build_plan(SMALL, nodes, MEASURED))
    assert "1 adapter of 400 Gb/s per node" in text
    assert "scaling efficiency" in text
    assert "data.partitions=2 (now 1)" in text


def test_json_has_every_number(plan: Plan) -> None:
    plain = json.loads(json.dumps(plain_plan(plan)))
    assert plain["hours"] == plan.hours
    assert plain["memory_bytes"]["total"] == plan.memory.total
    assert plain["phases"][0]["step_s"] == pytest.approx(0.128)
    assert plain["training"]["epochs"] == 4
    assert not any(math.isnan(v) for v in plain["data"].values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(SMALL, sizes=()), "trainer.max_epochs must be at least 1"),
        (lambda: replace(SMALL, precision="64-true"), "trainer.precision=64-true is not one of"),
        (lambda: replace(SMALL, decoder="magick"), "data.decoder=magick is not one of"),
        (lambda: Machines(find_gpu("h100"), 0), r"--nodes 0 must be at least 1\."),
        (lambda: Known(save_s=0.0), r"--save-s 0 must be above 0\."),
        (lambda: build_plan(replace(SMALL, model="resnet5"), ONE), "Model 'resnet5'"),
        (lambda: build_plan(SMALL, replace(ONE, gpus_per_node=3)), "not divisible by 3 ranks"),
    ],
)
def test_what_cannot_be_planned_is_refused(make: object, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        make()  # type: ignore[operator]
