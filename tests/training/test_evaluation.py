"""Exact evaluation: padding, uneven batches, few classes, and the count of what was visited."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resscale.errors import ResscaleError
from resscale.training.evaluation import Evaluation

CPU = torch.device("cpu")

# Each rank scores two of the four rows; then both the same two, which must be refused.
EVALUATE_HALF = """
import json, sys, torch
from torch import distributed
from resscale.errors import ResscaleError
from resscale.training.evaluation import Evaluation
folder, rank = sys.argv[1], int(sys.argv[2])
distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
logits, label, ids = torch.load(f"{folder}/batch.pt")
half = Evaluation(6, torch.device("cpu"))
half.update(*(part[2 * rank : 2 * rank + 2] for part in (logits, label, ids)))
same = Evaluation(6, torch.device("cpu"))
same.update(logits[:2], label[:2], ids[:2])
result = half.compute(expected=3)
try:
    same.compute(expected=2)
except ResscaleError as error:
    print(json.dumps({"result": result, "twice": str(error)}))
distributed.destroy_process_group()
"""


def ranked(*orders: Sequence[int], classes: int = 6) -> Tensor:
    """Logits of rows whose classes are ordered so, likeliest first."""
    logits = torch.full((len(orders), classes), -9.0)
    for row, order in enumerate(orders):
        for place, label in enumerate(order):
            logits[row, label] = -float(place)
    return logits


def on_two_ranks(script: str, folder: Path) -> list[Any]:
    """Run a script in two processes and return what each printed as JSON."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder), str(rank)], stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [json.loads(text) for text in said]


def test_micro_accuracy_over_uneven_batches_equals_a_count_by_hand() -> None:
    evaluation = Evaluation(6, CPU)
    # Right, wrong (true class second), wrong (true class sixth): 1 of 3, top-5 2 of 3.
    evaluation.update(
        ranked([0, 1], [1, 2], [0, 1, 2, 3, 4, 5]), torch.tensor([0, 2, 5]), torch.arange(3)
    )
    evaluation.update(ranked([4, 3]), torch.tensor([4]), torch.tensor([3]))  # right
    result = evaluation.compute(expected=4)
    assert result["top1"] == 0.5  # (1 + 1)/4, where the mean of the batches is (1/3 + 1)/2
    assert result["top5"] == 0.75  # (2 + 1)/4
    assert result["samples"] == 4
    assert result["bad"] == 0


def test_the_loss_is_the_mean_over_samples_not_over_batches() -> None:
    evaluation = Evaluation(2, CPU)
    evaluation.update(torch.zeros(3, 2), torch.tensor([0, 1, 0]), torch.arange(3))
    evaluation.update(torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([0]), torch.tensor([3]))
    # Three rows of ln 2 and one of -ln(3/4).
    expected = (3 * math.log(2) - math.log(3 / 4)) / 4
    assert evaluation.compute(4)["loss"] == pytest.approx(expected, rel=1e-6)


def test_padding_counts_nowhere() -> None:
    evaluation = Evaluation(6, CPU)
    logits = ranked([0, 1], [1, 0], [2, 1], [3, 1])
    label, ids = torch.tensor([0, 0, -1, -1]), torch.tensor([7, 8, -1, -1])
    evaluation.update(logits, label, ids)
    padded = evaluation.compute(expected=2)
    bare = Evaluation(6, CPU)
    bare.update(logits[:2], label[:2], ids[:2])
    assert padded == {**bare.compute(expected=2), "masked": 2.0}
    assert padded["top1"] == 0.5
    assert padded["samples"] == 2


def test_a_batch_of_nothing_but_padding_changes_nothing() -> None:
    evaluation = Evaluation(6, CPU)
    evaluation.update(ranked([0, 1]), torch.tensor([0]), torch.tensor([0]))
    evaluation.update(ranked([1, 0]), torch.tensor([-1]), torch.tensor([-1]))
    result = evaluation.compute(expected=1)
    assert (result["top1"], result["top5"], result["samples"]) == (1.0, 1.0, 1.0)


def test_a_damaged_sample_is_visited_and_counted_but_not_scored() -> None:
    evaluation = Evaluation(6, CPU)
    evaluation.update(ranked([0, 1], [1, 0]), torch.tensor([0, -1]), torch.tensor([0, 1]), bad=1)
    result = evaluation.compute(expected=2)
    assert (result["top1"], result["samples"], result["bad"]) == (1.0, 2.0, 1.0)


def test_top5_of_fewer_than_five_classes_is_all() -> None:
    evaluation = Evaluation(3, CPU)
    evaluation.update(
        ranked([0, 1, 2], [0, 1, 2], classes=3), torch.tensor([2, 0]), torch.arange(2)
    )
    result = evaluation.compute(expected=2)
    assert (result["top1"], result["top5"]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([0, 1, 1], "visited 3 samples, 2 of them unique, of 3"),
        ([0, 1, 1, 2], "visited 4 samples, 3 of them unique, of 3"),
        ([0, 2, -1], "visited 2 samples, 2 of them unique, of 3"),
    ],
)
def test_a_sample_visited_twice_or_not_at_all_is_an_error(ids: list[int], said: str) -> None:
    evaluation = Evaluation(6, CPU)
    logits = ranked(*[[0, 1]] * len(ids))
    evaluation.update(logits, torch.zeros(len(ids), dtype=torch.int64), torch.tensor(ids))
    with pytest.raises(ResscaleError, match=said):
        evaluation.compute(expected=3)


def test_two_ranks_come_to_the_result_of_one(tmp_path: Path) -> None:
    logits = ranked([0, 1], [1, 2], [2, 0], [0, 1, 2, 3, 4, 5])
    label, ids = torch.tensor([0, 2, 2, -1]), torch.tensor([0, 1, 2, -1])
    whole = Evaluation(6, CPU)
    whole.update(logits, label, ids)
    torch.save((logits, label, ids), tmp_path / "batch.pt")
    first, second = on_two_ranks(EVALUATE_HALF, tmp_path)
    assert first == second
    assert first["result"] == pytest.approx(whole.compute(expected=3), rel=1e-6)
    assert (first["result"]["samples"], first["result"]["masked"]) == (3, 1)
    assert first["twice"] == (
        "evaluation visited 4 samples, 2 of them unique, of 2; each must be visited once. "
        "Please report this as a bug."
    )


def test_a_pass_cut_short_on_request_is_not_counted_against_anything() -> None:
    evaluation = Evaluation(6, CPU)
    evaluation.update(ranked([0, 1]), torch.tensor([0]), torch.tensor([5]))
    assert evaluation.compute(expected=None)["samples"] == 1
