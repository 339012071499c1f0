"""The loader's rate against the step's."""

import dataclasses

from resscale.cluster.doctor.finding import Rank
from resscale.cluster.doctor.rates import Images, RateFacts, judge_rates, needed_workers

ME = Rank(0, "n1")
IMAGENET = Images(trained=224, stored=None)
# 8 workers read 240 images/s, 30 each; the step takes 900: 900 / 30 = 30 workers.
BOUND = RateFacts(loader_per_s=240, step_per_s=900, num_workers=8, cpus=64, step_rows=64)
FAST = dataclasses.replace(BOUND, loader_per_s=1000)


def test_a_loader_that_keeps_up_is_well() -> None:
    (found,) = judge_rates({ME: FAST}, IMAGENET)
    assert found.level == "ok"
    assert found.text == "8 workers read 1,000 images/s, the steps take 900 in passes of 64"


def test_a_loader_that_does_not_keep_up_is_told_how_many_workers_would() -> None:
    (found,) = judge_rates({ME: BOUND}, IMAGENET)
    assert (found.level, found.text) == ("warn", "data-bound: 240 of 900 images/s")
    assert found.remedy == (
        "22 more workers (--data.num_workers 30) or `pack --resize 320` if the images are larger "
        "would mend it"
    )


def test_workers_without_cpus_are_to_be_asked_for() -> None:
    (found,) = judge_rates({ME: dataclasses.replace(BOUND, cpus=30)}, IMAGENET)
    assert found.remedy.startswith(
        "22 more workers with 31 CPUs per rank (now 30; in SLURM: --cpus-per-task=31) or "
    )


def test_images_that_are_small_already_need_no_packing() -> None:
    (found,) = judge_rates({ME: BOUND}, Images(224, 256))
    assert found.remedy == "22 more workers (--data.num_workers 30) would mend it"
    assert "pack --resize 320" in judge_rates({ME: BOUND}, Images(224, 512))[0].remedy


def test_workers_follow_from_what_each_reads() -> None:
    assert needed_workers(BOUND) == 30
    assert needed_workers(dataclasses.replace(BOUND, step_per_s=901)) == 31
    # The rank itself has read: one worker reads as much.
    assert needed_workers(dataclasses.replace(BOUND, num_workers=0)) == 4  # 900 / 240 = 3.75


def test_of_many_ranks_the_tightest_counts() -> None:
    facts = {Rank(0, "n1"): FAST, Rank(1, "n2"): BOUND, Rank(2, "n3"): FAST}
    (found,) = judge_rates(facts, IMAGENET)
    assert found.text == "data-bound: 240 of 900 images/s on rank 1, the tightest of 3"


def test_a_rank_that_steps_slowly_is_named() -> None:
    slow = dataclasses.replace(FAST, step_per_s=700)
    facts = {Rank(0, "n1"): FAST, Rank(1, "n2"): slow, Rank(2, "n3"): FAST}
    (found,) = judge_rates(facts, IMAGENET)
    assert found.level == "warn"
    assert found.text == (
        "rank 1 on n2 steps 700 images/s, the median is 900: all ranks wait for it"
    )
    near = {**facts, Rank(1, "n2"): dataclasses.replace(FAST, step_per_s=720)}  # 0.8 × 900
    assert judge_rates(near, IMAGENET)[0].level == "ok"


def test_of_two_ranks_the_slower_one_is_the_slow_one() -> None:
    slow = dataclasses.replace(FAST, step_per_s=400)
    (found,) = judge_rates({Rank(0, "n1"): slow, Rank(1, "n2"): FAST}, IMAGENET)
    assert found.text.startswith("rank 0 on n1 steps 400 images/s, the median is 900")


def test_what_kept_it_from_being_measured_fails() -> None:
    facts = RateFacts(loader_per_s=240, faults=(("does not fit", "use fewer"),))
    (found,) = judge_rates({ME: facts}, IMAGENET)
    assert (found.level, found.text, found.remedy) == ("fail", "does not fit", "use fewer")
