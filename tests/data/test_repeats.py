"""Repeated augmentation: keys of its draws, and the history of samples that it promises."""

import numpy as np

from resscale.data.repeats import augment_ids


def test_without_repeats_draws_are_keyed_by_the_id() -> None:
    ids = np.array([-1, 0, 17, 10**12])
    keys = augment_ids(ids, np.zeros(4, dtype=np.int64))
    assert keys.tolist() == ids.tolist()
    assert keys.dtype == np.int64


def test_no_two_copies_of_any_two_samples_share_their_draws() -> None:
    ids = np.array([0, 1, 2, 3, 10**12, 2**44 - 1])
    keys = [augment_ids(ids, np.full(len(ids), copy)) for copy in range(16)]
    assert len(np.unique(np.concatenate(keys))) == 6 * 16
