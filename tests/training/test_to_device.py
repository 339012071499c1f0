"""Host arrays on a device, and rows of a batch in its memory layout."""

import numpy as np
import torch
from sample_photos import crops

from resscale.training.to_device import select_rows, to_device


def test_an_array_keeps_its_values_and_type() -> None:
    array = np.arange(12, dtype=np.int64).reshape(3, 4).T
    tensor = to_device(array, torch.device("cpu"))
    assert tensor.dtype == torch.int64
    assert tensor.tolist() == array.tolist()


def test_selected_rows_are_a_copy_in_channels_last_memory() -> None:
    images = crops(4)
    chosen = select_rows(images, torch.tensor([2, 0, 2]))
    assert torch.equal(chosen, images[[2, 0, 2]])
    assert chosen.is_contiguous(memory_format=torch.channels_last)
    chosen.zero_()
    assert images.any()
