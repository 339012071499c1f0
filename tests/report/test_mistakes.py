"""Counting mistakes: classes, pairs, the most confident ones, each image once."""

import itertools

import numpy as np
import pytest

from resscale.errors import ResscaleError
from resscale.report.mistakes import Int64, MistakeCounts

# Label, likeliest class and its probability, second likeliest class, of six images of three
# classes. Wrong are 1 (0 for 2), 3 (1 for 0), 4 (1 for 0) and 5 (2 for 0).
IMAGES = [
    (0, 0, 0.90, 1),
    (0, 2, 0.80, 0),
    (1, 1, 0.60, 2),
    (1, 0, 0.95, 1),
    (1, 0, 0.55, 2),
    (2, 0, 0.70, 1),
]


def add(counts: MistakeCounts, ids: list[int]) -> None:
    """Count some of the images as one batch, each image's pixels being its id."""
    chosen = [IMAGES[sample] for sample in ids]
    counts.add(
        np.array(ids),
        np.array([label for label, _, _, _ in chosen]),
        np.array([[first, second] for _, first, _, second in chosen]),
        np.array([[p, 1 - p] for _, _, p, _ in chosen], dtype=np.float32),
        np.stack([np.full((2, 2, 1), sample, dtype=np.uint8) for sample in ids]),
    )


def counted(batches: list[list[int]], most_mistakes: int = 40) -> MistakeCounts:
    counts = MistakeCounts(num_classes=3, num_samples=6, most_mistakes=most_mistakes)
    for batch in batches:
        add(counts, batch)
    counts.check_complete()
    return counts


def test_known_predictions_give_known_counts() -> None:
    counts = counted([[0, 1, 2], [3, 4, 5]])
    assert counts.samples.tolist() == [2, 3, 1]
    assert counts.hits.tolist() == [1, 1, 0]
    # Among the two likeliest: 0 and 1; 2 and 3, for 4 has 0 and 2; none, for 5 has 0 and 1.
    assert counts.hits_top5.tolist() == [2, 2, 0]
    # label × 3 + predicted: 0 for 2 is 2, 1 for 0 is 3 (twice), 2 for 0 is 6.
    assert counts.pairs == {2: 1, 3: 2, 6: 1}


def test_the_most_confident_mistakes_come_first_with_what_the_net_saw() -> None:
    kept = counted([[0, 1, 2, 3, 4, 5]]).confident()
    assert [mistake.id for mistake in kept] == [3, 1, 5, 4]  # 0.95, 0.80, 0.70, 0.55
    first = kept[0]
    assert (first.label, first.predicted, first.probability) == (1, 0, pytest.approx(0.95))
    assert first.label_probability == pytest.approx(0.05)  # its second likeliest class
    assert kept[-1].label_probability is None  # 1 is not among 0 and 2
    assert [int(mistake.image[0, 0, 0]) for mistake in kept] == [3, 1, 5, 4]


@pytest.mark.parametrize("order", list(itertools.permutations(range(6)))[::71])
def test_any_order_and_any_batches_keep_the_same_few(order: tuple[int, ...]) -> None:
    ids = list(order)
    for cut in (1, 3, 5):
        kept = counted([ids[:cut], ids[cut:]], most_mistakes=2).confident()
        assert [mistake.id for mistake in kept] == [3, 1]


def test_of_equally_confident_mistakes_the_first_samples_are_kept() -> None:
    counts = MistakeCounts(num_classes=2, num_samples=4, most_mistakes=2)
    ids = np.array([3, 1, 2, 0])
    wrong = np.tile(np.array([[1, 0]]), (4, 1))
    sure = np.tile(np.array([[0.75, 0.25]], dtype=np.float32), (4, 1))
    counts.add(ids, np.zeros(4, dtype=np.int64), wrong, sure, np.zeros((4, 2, 2, 3), np.uint8))
    assert [mistake.id for mistake in counts.confident()] == [0, 1]


def test_what_is_kept_outlives_the_memory_of_its_batch() -> None:
    counts = MistakeCounts(num_classes=2, num_samples=1)
    images = np.full((1, 2, 2, 3), 7, dtype=np.uint8)
    row = np.array([0])
    counts.add(row, row, np.array([[1, 0]]), np.array([[0.9, 0.1]], dtype=np.float32), images)
    images[:] = 0  # lent memory is used again
    assert int(counts.confident()[0].image.max()) == 7


def no_images(count: int) -> tuple[Int64, np.ndarray, np.ndarray]:
    return (
        np.zeros((count, 1), dtype=np.int64),
        np.ones((count, 1), dtype=np.float32),
        np.zeros((count, 1, 1, 1), dtype=np.uint8),
    )


def test_padding_counts_nowhere_and_damaged_images_only_as_visited() -> None:
    counts = MistakeCounts(num_classes=2, num_samples=2)
    # A right one, a damaged one, and two rows that fill the batch.
    counts.add(np.array([0, 1, -1, -1]), np.array([0, -1, -1, -1]), *no_images(4))
    counts.check_complete()
    assert (counts.samples.tolist(), counts.hits.tolist()) == ([1, 0], [1, 0])
    assert not counts.pairs


@pytest.mark.parametrize("second", [[1, 1], [0, 1], [2, 0]])
def test_an_image_that_comes_twice_is_a_bug(second: list[int]) -> None:
    counts = MistakeCounts(num_classes=1, num_samples=3)
    counts.add(np.array([0]), np.zeros(1, np.int64), *no_images(1))
    with pytest.raises(ResscaleError, match="visited twice; each must be visited once"):
        counts.add(np.array(second), np.zeros(2, np.int64), *no_images(2))


def test_an_image_that_does_not_come_is_a_bug() -> None:
    counts = MistakeCounts(num_classes=1, num_samples=3)
    counts.add(np.array([0, 2]), np.zeros(2, np.int64), *no_images(2))
    with pytest.raises(ResscaleError, match="1 of 3 validation images were not visited"):
        counts.check_complete()


def test_one_class_has_no_mistakes() -> None:
    counts = MistakeCounts(num_classes=1, num_samples=2)
    counts.add(np.array([0, 1]), np.zeros(2, np.int64), *no_images(2))
    counts.check_complete()
    assert (counts.samples.tolist(), counts.hits.tolist()) == ([2], [2])
    assert counts.confident() == []


def test_what_is_kept_of_many_images_and_classes_does_not_grow_with_the_images() -> None:
    classes, batch = 1000, 500
    counts = MistakeCounts(classes, num_samples=20 * batch, most_mistakes=8)
    images = np.zeros((batch, 2, 2, 3), dtype=np.uint8)
    for number in range(20):
        ids = np.arange(number * batch, (number + 1) * batch)
        labels = ids % classes
        # Every class is taken for the next one, ever more confidently.
        wrong = ((labels + 1) % classes)[:, None]
        counts.add(ids, labels, wrong, (ids / 10_000).astype(np.float32)[:, None], images)
    counts.check_complete()
    assert counts.samples.tolist() == [10] * classes  # 20 × 500 / 1000
    assert len(counts.pairs) == classes
    assert set(counts.pairs.values()) == {10}
    assert [mistake.id for mistake in counts.confident()] == list(range(9999, 9991, -1))
