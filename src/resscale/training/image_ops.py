"""Pillow's operations on colours, on whole batches of uint8 images: equal to the byte.

Each takes images (n, C, H, W) of 1 or 3 channels and a parameter per image (n,), and returns new
images. Nothing is read off the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

# ITU-R 601-2 luma in 16 bits of fraction, as Pillow converts RGB to grey.
_LUMA = (19595, 38470, 7471)
_LEVELS = 256
_THIRTEENTH = 20165  # of 2^18, rounded up


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: factor 0 is black, 1 the image, above 1 brighter."""
    return _blend(torch.zeros((), device=images.device), images, factor)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image: factor 0 is grey, 1 the image; a grey image stays as it is."""
    return _blend(_luma(images).float(), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with each image's mean grey, rounded to whole levels."""
    luma = _luma(images)
    count = luma.shape[-2] * luma.shape[-1]
    total = luma.sum(dim=(1, 2, 3), dtype=torch.int64)
    # floor(total / count + 1/2) in whole numbers
    mean = torch.div(2 * total + count, 2 * count, rounding_mode="floor")
    return _blend(mean.view(-1, 1, 1, 1).float(), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed image: factor 0 is smooth, above 1 sharper; the rim is left."""
    return _blend(_smooth(images).float(), images, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper `bits` of each level, 1 to 8."""
    mask = 256 - torch.exp2(8 - bits)
    return images & mask.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the levels at or above a threshold of 0 to 256."""
    # Whole levels lie below a threshold if they lie below the next whole number.
    limit = threshold.ceil().to(torch.int16).view(-1, 1, 1, 1)
    return torch.where(images < limit, images, ~images)


def solarize_add(images: Tensor, added: Tensor) -> Tensor:
    """Add a whole number of levels, 0 to 128, to those below 128."""
    more = images + added.to(torch.uint8).view(-1, 1, 1, 1)
    return torch.where(images < 128, more, images)


def invert(images: Tensor, _: Tensor) -> Tensor:
    """Return 255 minus each level."""
    return ~images


def auto_contrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch the levels of each channel to 0 to 255."""
    lowest = images.amin(dim=(2, 3)).double()[..., None]
    highest = images.amax(dim=(2, 3)).double()[..., None]
    levels = torch.arange(_LEVELS, device=images.device, dtype=torch.float64)
    # In Pillow's own order and precision: its results are cut off, not rounded. Both sides tensors:
    # torch divides a number by a tensor as its reciprocal times the number, which rounds twice.
    scale = levels[-1] / (highest - lowest).clamp(min=1.0)
    stretched = (levels * scale + -lowest * scale).clamp(0.0, 255.0)
    table = torch.where(highest > lowest, stretched, levels).to(torch.uint8)
    return _look_up(_level_index(images), table)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Spread the levels of each channel, so that each range of them holds as many pixels."""
    index = _level_index(images)
    rows, channels, height, width = images.shape
    counts = _count(index, rows * channels * _LEVELS).view(rows, channels, _LEVELS)
    highest = images.amax(dim=(2, 3))[..., None].long()
    step = torch.div(height * width - counts.gather(2, highest), 255, rounding_mode="floor")
    below = counts.cumsum(dim=2) - counts
    width_of_level = step.clamp(min=1)
    spread = torch.div(
        torch.div(step, 2, rounding_mode="floor") + below, width_of_level, rounding_mode="floor"
    ).clamp(max=255)
    levels = torch.arange(_LEVELS, device=images.device)
    table = torch.where(step > 0, spread, levels).to(torch.uint8)
    return _look_up(index, table)


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Return `degenerate + factor × (image - degenerate)` in float32, cut off to whole levels."""
    weight = factor.to(torch.float32).view(-1, 1, 1, 1)
    # Multiplied, then added: fused, it would be rounded once where Pillow rounds twice.
    # One plane behind the other, where a grey image lies along each.
    planes = images.to(torch.float32, memory_format=torch.contiguous_format)
    blended = planes.sub_(degenerate).mul_(weight).add_(degenerate)
    return blended.clamp_(0, 255).to(torch.uint8)


def _luma(images: Tensor) -> Tensor:
    """Return the grey image, int32 (n, 1, H, W)."""
    if images.shape[1] == 1:
        return images.to(torch.int32)
    luma = torch.full_like(images[:, :1], 0x8000, dtype=torch.int32)
    for channel, weight in enumerate(_LUMA):
        luma.add_(images[:, channel : channel + 1].to(torch.int32), alpha=weight)
    return luma.bitwise_right_shift_(16)


def _smooth(images: Tensor) -> Tensor:
    """Return the image under weights of 1 around 5, over 13; the rim and tiny images as they are.

    Pillow's sum in float32 is never within its rounding error of a whole number, since
    `sum / 13 + 1/2` is not one for whole sums: whole numbers give the same.
    """
    if min(images.shape[-2:]) < 3:
        return images
    wide = images.to(torch.int32)
    columns = (wide[..., :-2] + wide[..., 1:-1]).add_(wide[..., 2:])
    total = (columns[..., :-2, :] + columns[..., 1:-1, :]).add_(columns[..., 2:, :])
    total.add_(wide[..., 1:-1, 1:-1], alpha=4)
    smooth = images.clone()
    # floor(total / 13 + 1/2), exact for every total of 13 levels; division is slow.
    smooth[..., 1:-1, 1:-1] = total.add_(6).mul_(_THIRTEENTH).bitwise_right_shift_(18)
    return smooth


def _level_index(images: Tensor) -> Tensor:
    """Return each value's place in the memory of a table (n, C, 256): int64 (n, C, H, W)."""
    rows, channels = images.shape[:2]
    starts = torch.arange(rows * channels, device=images.device).mul_(_LEVELS)
    return images.long().add_(starts.view(rows, channels, 1, 1))


def _look_up(index: Tensor, table: Tensor) -> Tensor:
    return table.take(index)


def _count(index: Tensor, size: int) -> Tensor:
    """Return how often each place is named, int64 (size,)."""
    # Not bincount: on a GPU it waits to learn the largest value.
    flat = index.permute(0, 2, 3, 1).reshape(-1)
    ones = torch.ones((), dtype=torch.int64, device=index.device).expand(flat.shape)
    return torch.zeros(size, dtype=torch.int64, device=index.device).scatter_add_(0, flat, ones)
