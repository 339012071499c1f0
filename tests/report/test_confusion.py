"""Which classes are the worst, which are mixed up, and the matrix of those most involved."""

import dataclasses

import pytest

from resscale.report.confusion import (
    confused_pairs,
    confusion_matrix,
    involved_classes,
    worst_classes,
)
from resscale.report.mistakes_file import Measured


def with_pairs(
    measured: Measured, pairs: dict[tuple[int, int], int], samples: tuple[int, ...]
) -> Measured:
    """What is measured where these pairs are all the mistakes there are."""
    wrong = [sum(n for (label, _), n in pairs.items() if label == c) for c in range(len(samples))]
    hits = tuple(n - w for n, w in zip(samples, wrong, strict=True))
    entries = tuple((label, predicted, n) for (label, predicted), n in pairs.items())
    return dataclasses.replace(
        measured, samples=samples, hits=hits, hits_top5=samples, pairs=entries, classes=()
    )


def test_the_worst_classes_are_those_with_the_lowest_share_of_right_answers(
    measured: Measured,
) -> None:
    dog, fox = worst_classes(measured)  # of the cats none is mistaken
    assert (dog.label, dog.samples, dog.hits, dog.top1) == (1, 5, 2, 2 / 5)
    assert dog.taken_for == (0, 2)  # twice for a cat, once for a fox
    assert (fox.label, fox.top1, fox.taken_for) == (2, 4 / 6, (1, 2))
    assert [result.label for result in worst_classes(measured, most=1)] == [1]


def test_of_equal_shares_the_class_with_more_images_is_the_worse_one(measured: Measured) -> None:
    # Half of each is right: 1 of 2, 5 of 10, 1 of 2; class 3 has no images.
    found = with_pairs(measured, {(0, 3): 1, (1, 3): 5, (2, 3): 1}, (2, 10, 2, 0))
    assert [result.label for result in worst_classes(found)] == [1, 0, 2]


def test_of_equally_frequent_wrong_classes_the_first_is_named(measured: Measured) -> None:
    for pairs in ({(0, 2): 3, (0, 1): 3, (0, 3): 1}, {(0, 1): 3, (0, 2): 3}):
        found = with_pairs(measured, pairs, (9, 0, 0, 0))
        assert worst_classes(found)[0].taken_for == (1, 3)


def test_pairs_come_by_their_images_and_then_by_class(measured: Measured) -> None:
    assert confused_pairs(measured) == [(1, 0, 2), (2, 1, 2), (1, 2, 1)]
    assert confused_pairs(measured, most=1) == [(1, 0, 2)]


def test_a_matrix_of_few_classes_has_all_that_appear_in_their_order(measured: Measured) -> None:
    # Class 2 has no images and nothing is taken for it; class 3 none, but something is.
    found = with_pairs(measured, {(4, 3): 1}, (1, 1, 0, 0, 2))
    assert involved_classes(found) == (0, 1, 3, 4)


def test_of_many_classes_those_mixed_up_most_stand_beside_each_other(measured: Measured) -> None:
    pairs = {(0, 7): 5, (7, 0): 4, (3, 5): 8, (7, 9): 2, (1, 2): 1}
    found = with_pairs(measured, pairs, (10,) * 10)
    # 0 with 7 is 9 times, 3 with 5 8 times; 9 comes beside 7. For 1 and 2 there is no room.
    assert involved_classes(found, most=5) == (0, 7, 9, 3, 5)
    assert involved_classes(found, most=4) == (0, 7, 3, 5)


def test_a_pair_that_does_not_fit_leaves_room_for_one_class_that_does(measured: Measured) -> None:
    found = with_pairs(measured, {(0, 1): 9, (2, 3): 8, (1, 4): 7}, (10,) * 6)
    assert involved_classes(found, most=3) == (0, 1, 4)  # 2 and 3 would make four


def test_the_matrix_adds_up(measured: Measured) -> None:
    matrix = confusion_matrix(measured, (0, 1, 2))
    assert matrix.counts == ((4, 0, 0), (2, 2, 1), (0, 2, 4))
    assert matrix.others == (0, 0, 0)
    assert matrix.samples == (4, 5, 6)


@pytest.mark.parametrize("labels", [(1, 2), (2, 1)])
def test_what_lies_outside_of_a_matrix_is_counted_beside_it(
    measured: Measured, labels: tuple[int, ...]
) -> None:
    matrix = confusion_matrix(measured, labels)
    dog, fox = labels.index(1), labels.index(2)
    assert matrix.counts[dog][fox] == 1
    assert matrix.counts[fox][dog] == 2
    assert (matrix.others[dog], matrix.others[fox]) == (2, 0)  # two dogs are taken for cats


def test_a_thousand_classes_are_cut_to_a_dozen(measured: Measured) -> None:
    pairs = {(c, (c + 1) % 1000): 1 + c % 50 for c in range(1000)}
    found = with_pairs(measured, pairs, (60,) * 1000)
    labels = involved_classes(found)
    assert len(set(labels)) == len(labels) == 12
    # The most confused are 49 with 50, 99 with 100, .., 999 with 0: 50 times each, by class.
    assert labels[:4] == (0, 999, 49, 50)
    matrix = confusion_matrix(found, labels)
    assert [sum(row) + other for row, other in zip(matrix.counts, matrix.others, strict=True)] == [
        60
    ] * 12


def test_one_class_is_a_matrix_of_one(measured: Measured) -> None:
    found = with_pairs(measured, {}, (3,))
    assert worst_classes(found) == []
    assert confused_pairs(found) == []
    assert confusion_matrix(found, involved_classes(found)).counts == ((3,),)
