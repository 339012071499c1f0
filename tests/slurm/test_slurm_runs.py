"""Jobs on a real cluster that are stopped, preempted and lose nodes: they end as if undisturbed.

All of it happens side by side (stories.py), for most of it is waiting; the tests look at what is
left. One job is never disturbed, and the others' histories, losses and weights are compared with
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import stories
import torch
from slurm_cluster import SlurmCluster
from stories import Ended, Stage
from trial import EPOCHS, EVERY_N_STEPS, STEPS_PER_EPOCH, Trial

from resscale.data.builtin import resolve

# Twenty starts of up to four ranks on two cores, which other tests may use too.
pytestmark = pytest.mark.timeout(1800)
Told = Callable[[str], list[Ended]]


@pytest.fixture(scope="module")
def told(
    slurm_is_possible: None,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Told]:
    """Begin all stories; return what waits for the end of one."""
    resolve("builtin:digits/train")
    # Two nodes for two jobs each, and one more that takes the place of a lost one.
    with ThreadPoolExecutor(max_workers=3) as narrators, SlurmCluster(num_nodes=5) as slurm:
        stage = Stage(slurm, request.config.rootpath, tmp_path_factory.mktemp("slurm"))
        # The longest first.
        names = ("lost", "stopped", "undisturbed", "shared", "refused")
        running: dict[str, Future[list[Ended]]] = {
            name: narrators.submit(getattr(stories, name), stage) for name in names
        }
        yield lambda name: running[name].result()
        # The stories of a test run that was interrupted end here: SLURM no longer answers.
        narrators.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="module")
def undisturbed(told: Told) -> Trial:
    """The run that the others are compared with."""
    (ended,) = told("undisturbed")
    assert ended.facts["JobState"] == "COMPLETED", ended.trial.said
    return ended.trial


def assert_same_history(trial: Trial, undisturbed: Trial) -> None:
    """The same samples at each step, none twice in an epoch, and one validation of each epoch."""
    assert trial.samples() == undisturbed.samples()
    assert trial.validations() == undisturbed.validations()
    assert trial.summary()["status"] == "done"


def assert_same_learning(trial: Trial, undisturbed: Trial) -> None:
    """The same losses and weights but for the order in which the ranks' gradients are added."""
    before = 0
    for (step, loss), (same, expected) in zip(trial.losses(), undisturbed.losses(), strict=True):
        assert step == same
        if not any(before < start < step for start in resumed_at(trial)):
            assert loss == pytest.approx(expected, rel=2e-3), f"step {step}"
        before = step
    weights = trial.weights()
    apart = size = 0.0
    for name, tensor in undisturbed.weights().items():
        apart += float((weights[name].double() - tensor.double()).square().sum())
        size += float(tensor.double().square().sum())
    assert apart**0.5 < 0.01 * size**0.5  # the last four steps move them by 0.012


def assert_equal_weights(trial: Trial, undisturbed: Trial) -> None:
    """Equal in every bit, BatchNorm's statistics too: as many ranks, and the same sums."""
    weights = trial.weights()
    for name, tensor in undisturbed.weights().items():
        assert torch.equal(weights[name], tensor), name


def resumed_at(trial: Trial) -> list[int]:
    """The steps that the later starts went on from."""
    return [event["step"] for event in trial.events("resumed")]


def test_a_run_of_two_nodes_sees_each_sample_once_and_validates_once_an_epoch(
    undisturbed: Trial,
) -> None:
    history = undisturbed.samples()
    assert len(history) == EPOCHS * STEPS_PER_EPOCH
    for epoch in range(EPOCHS):
        ids = [i for (e, _), batch in history.items() if e == epoch for i in batch]
        assert len(ids) == len(set(ids)) == STEPS_PER_EPOCH * 64  # the global batch
    assert undisturbed.validations() == {0: 1, 1: 1}
    assert "16/rank × 4 ranks × 1 accum = 64 global" in undisturbed.said
    assert not undisturbed.events("resumed")


def test_a_stopped_and_preempted_job_ends_as_an_undisturbed_one(
    told: Told, undisturbed: Trial
) -> None:
    (ended,) = told("stopped")
    trial = ended.trial
    assert (ended.facts["JobState"], ended.facts["Restarts"]) == ("COMPLETED", "4"), trial.said
    assert_same_history(trial, undisturbed)
    assert trial.checkpoints() == undisturbed.checkpoints()
    assert_equal_weights(trial, undisturbed)


def test_each_stop_saves_where_it_happens(told: Told) -> None:
    (ended,) = told("stopped")
    # Held at 4, signalled, and a vote is counted one step later; in the validation behind the
    # first epoch; then again in mid-epoch. SLURM alone decided whether the third could save.
    first, validation, _, last = resumed_at(ended.trial)
    assert (first, validation, last) == (6, STEPS_PER_EPOCH, 36)


def test_a_second_signal_while_saving_changes_nothing(told: Told) -> None:
    (ended,) = told("stopped")
    # Signalled before the checkpoint of step 36 was there, which the next start went on from.
    assert "epoch-0001-step-00000036.ckpt" not in ended.saved
    assert resumed_at(ended.trial)[-1] == 36


def test_a_job_that_loses_ranks_and_nodes_ends_as_an_undisturbed_one(
    told: Told, undisturbed: Trial
) -> None:
    (ended,) = told("lost")
    trial = ended.trial
    assert (ended.facts["JobState"], ended.facts["Restarts"]) == ("COMPLETED", "4"), trial.said
    assert_same_history(trial, undisturbed)
    assert trial.checkpoints() == undisturbed.checkpoints()
    assert_equal_weights(trial, undisturbed)


def test_a_loss_costs_the_work_since_the_last_checkpoint(told: Told) -> None:
    (ended,) = told("lost")
    # Lost at 8 (rank), 13 (power), 27 (SLURM's daemon) and 33 (cable).
    saved = [step - step % EVERY_N_STEPS for step in (8, 13, 27, 33)]
    assert resumed_at(ended.trial) == saved == [5, 10, 25, 30]


def test_a_job_that_lost_a_node_goes_on_with_another(told: Told) -> None:
    (ended,) = told("lost")
    # The first start lost a rank; the next three lost a node each.
    for before, node, after in zip(ended.nodes[1:], ended.lost, ended.nodes[2:], strict=False):
        assert node in before
        assert node not in after


def test_a_killed_rank_is_named(told: Told) -> None:
    (ended,) = told("lost")
    failure = ended.trial.events("rank_failed")[0]
    assert (failure["rank"], failure["kind"], failure["step"]) == (2, "gone", 8)


def test_two_tasks_of_an_array_share_their_nodes(told: Told, undisturbed: Trial) -> None:
    alone, fewer = told("shared")
    assert alone.nodes == [
        ["n1", "n2"],
        ["n1", "n2"],
    ]  # of both, when both stood at their first step
    for ended in (alone, fewer):
        trial = ended.trial
        assert (ended.facts["JobState"], ended.facts["Restarts"]) == ("COMPLETED", "1"), trial.said
        assert_same_history(trial, undisturbed)


def test_a_signal_to_one_rank_stops_all(told: Told) -> None:
    alone, _ = told("shared")
    assert resumed_at(alone.trial) == [2]  # held at 0; the vote counts one step later


def test_a_job_stops_by_itself_when_its_time_is_nearly_over(told: Told) -> None:
    _, early = told("shared")
    assert "the time limit is near: stopping" in early.trial.said
    assert resumed_at(early.trial) == [2]


def test_a_job_goes_on_with_fewer_nodes(told: Told, undisturbed: Trial) -> None:
    _, fewer = told("shared")
    assert fewer.facts["NumNodes"] == "1"
    assert "16/rank × 2 ranks × 2 accum = 64 global" in fewer.trial.said
    assert "16/rank × 1 rank × 4 accum = 64 global" in fewer.trial.said
    assert fewer.trial.checkpoints() == undisturbed.checkpoints()
    assert_same_learning(fewer.trial, undisturbed)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "2 tasks on 1 node, but srun has not started this process: write `srun resscale fit"),
        (1, "2, 1 tasks on its nodes, and every node must have as many: use --ntasks-per-node"),
    ],
    ids=["forgotten srun", "unlike nodes"],
)
def test_a_job_that_cannot_work_ends_at_once_and_is_not_requeued(
    told: Told, number: int, text: str
) -> None:
    ended = told("refused")[number]
    assert (ended.facts["JobState"], ended.facts["ExitCode"]) == ("FAILED", "2:0")
    assert ended.facts["Restarts"] == "0"
    assert text in ended.trial.said
    assert ended.trial.said.count(text) == 1  # one of the ranks says it
