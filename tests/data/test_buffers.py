"""Memory of batches is used again, and never while somebody holds it."""

import torch

from resscale.data.buffers import PixelBuffers


def address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_memory_that_nobody_holds_is_lent_again() -> None:
    buffers = PixelBuffers()
    first = torch.from_numpy(buffers.take(2, 8, 3))
    place = address(first)
    del first
    assert address(torch.from_numpy(buffers.take(2, 8, 3))) == place


def test_memory_is_not_lent_while_a_view_of_a_view_holds_it() -> None:
    buffers = PixelBuffers()
    pixels = buffers.take(2, 8, 3)
    row = torch.from_numpy(pixels).permute(0, 3, 1, 2)[1]
    part = pixels[:1]
    place = pixels.ctypes.data
    del pixels, part
    other = buffers.take(2, 8, 3)
    assert other.ctypes.data != place
    row += 1  # still there
    del row
    assert buffers.take(2, 8, 3).ctypes.data == place


def test_other_sizes_are_other_memory() -> None:
    buffers = PixelBuffers()
    small = buffers.take(2, 8, 3)
    assert small.shape == (2, 8, 8, 3)
    del small
    assert buffers.take(3, 8, 1).shape == (3, 8, 8, 1)


def test_no_more_than_stated_is_kept() -> None:
    buffers = PixelBuffers(most_kept=2)
    held = [buffers.take(1, 4, 3) for _ in range(5)]
    held.clear()
    assert [len(free) for free in buffers._free.values()] == [2]


def test_the_memory_of_sizes_that_have_passed_is_let_go() -> None:
    buffers = PixelBuffers()
    for side in (4, 5, 6, 7):
        held = [buffers.take(1, side, 3) for _ in range(2)]
        held.clear()
    # Of the size before, batches may still be held while the next ones are read.
    assert sorted(buffers._free) == [1 * 6 * 6 * 3, 1 * 7 * 7 * 3]
    late = buffers.take(1, 6, 3)
    buffers.take(1, 8, 3)
    buffers.take(1, 9, 3)
    del late  # of a size that nobody asks for any more
    assert sorted(buffers._free) == [1 * 8 * 8 * 3, 1 * 9 * 9 * 3]
