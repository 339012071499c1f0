"""Repeated augmentation: a sample stands several times in a global batch, never augmented alike."""

from __future__ import annotations

import numpy as np

from resscale.data.permutation import Int64

# Ids stay below it (17 million million samples), so that no two (id, copy) are ever the same key.
_COPY_BITS = 44


def augment_ids(ids: Int64, copies: Int64) -> Int64:
    """Return what each row's random draws are keyed by: int64 (n,).

    Equal to the ids where the copies are 0, so that nothing changes for a run without repeats.

    Args:
        ids: sample ids, int64 (n,); -1 for padding.
        copies: which of its sample's repeats a row is, from 0, int64 (n,).
    """
    return ids + (copies << np.int64(_COPY_BITS))
