"""Synthetic batches have the form of the loader's, and are the same each time."""

import torch

from resscale.bench.synthetic import SyntheticLoader, synthetic_batches
from resscale.data.dataset import Batch


def test_batches_are_as_the_loader_gives_them() -> None:
    batches = synthetic_batches(6, 8, 3, 10)
    for batch in batches:
        assert set(batch) == set(Batch.__annotations__)
        assert batch["image"].shape == (6, 3, 8, 8)
        assert batch["image"].dtype == torch.uint8
        assert batch["image"].is_contiguous(memory_format=torch.channels_last)
        assert 0 <= int(batch["label"].min()) <= int(batch["label"].max()) < 10
    ids = torch.cat([batch["id"] for batch in batches])
    assert ids.tolist() == list(range(len(batches) * 6))


def test_each_call_gives_the_same_pixels() -> None:
    first, second = (synthetic_batches(2, 8, 1, 10) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
    assert not torch.equal(first[0]["image"], first[1]["image"])


def test_a_loader_repeats_them_for_as_long_as_it_is_asked() -> None:
    batches = synthetic_batches(2, 8, 1, 10)
    given = list(SyntheticLoader(batches, 6))
    assert [batch["step"] for batch in given] == [0, 1, 2, 3, 4, 5]
    assert given[4]["image"] is batches[0]["image"]
    assert batches[0]["step"] == 0
