"""What happens to a training micro-batch on the device: flip, policy, normalise, erase, mix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from resscale.data.dataset import Batch
from resscale.data.permutation import Int64, mix_key
from resscale.data.repeats import augment_ids
from resscale.training.apply_policy import apply_layers, fill_levels
from resscale.training.erasing import ErasingConfig, draw_erasures, erase
from resscale.training.losses import Targets
from resscale.training.mixing import MixingConfig, draw_mix, mix
from resscale.training.policies import PolicyConfig, draw_policy

_POLICY, _ERASE, _NOISE, _MIX = 31, 32, 33, 34


class DeviceAugment:
    """Augments micro-batches; with nothing turned on it does what evaluation does, and flips.

    All draws are made on the host and are a function of (seed, epoch, augmentation id of a row),
    those of mixing and of noise of (seed, epoch, id of the micro-batch's first row): the same for
    any number of ranks and after any restart. Nothing is read off the device.

    Args:
        policy: operations on pixels.
        erasing: rectangles erased.
        mixing: mixup and cutmix.
        channels: of the images.
        seed: names the draws.

    Raises:
        UserInputError: the policy is not for so many channels.
    """

    def __init__(
        self,
        policy: PolicyConfig,
        erasing: ErasingConfig,
        mixing: MixingConfig,
        channels: int,
        seed: int,
    ) -> None:
        policy.check_channels(channels)
        self.policy = policy
        self.erasing = erasing
        self.mixing = mixing
        self.channels = channels
        self.seed = seed
        self._fill: Tensor | None = None

    def __call__(
        self, batch: Batch, normalise: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Targets]:
        """Return the network's input, float32 (N, C, H, W), and its targets.

        Args:
            batch: pixels, labels and flips on the device; ids and copies on the host.
            normalise: from uint8 pixels to a new float32 tensor.
        """
        pixels, label = mirror(batch["image"], batch["flip"]), batch["label"]
        if self.policy.name is not None:
            pixels = self._operate(pixels, batch)
        images = normalise(pixels)
        if self.erasing.probability > 0:
            images = self._erase(images, batch)
        if not self.mixing.is_on:
            return images, Targets(label)
        return self._mix(images, batch)

    def describe(self) -> list[str]:
        """Return what is turned on in a line, for people; nothing where nothing is."""
        policy, erasing, mixing = self.policy, self.erasing, self.mixing
        parts = []
        if policy.name is not None:
            parts.append(f"{policy.name} ({policy.interpolation})")
        if erasing.probability > 0:
            parts.append(f"erasing of {erasing.probability:.0%} ({erasing.value})")
        if mixing.is_on:
            alphas = {"mixup": mixing.mixup_alpha, "cutmix": mixing.cutmix_alpha}
            names = " or ".join(f"{name} {alpha:g}" for name, alpha in alphas.items() if alpha)
            parts.append(f"{names} in {mixing.probability:.0%} of micro-batches")
        return [f"augmentation: {', '.join(parts)}"] if parts else []

    @torch.no_grad()
    def _operate(self, pixels: Tensor, batch: Batch) -> Tensor:
        key = mix_key(self.seed, _POLICY, batch["epoch"])
        layers = draw_policy(self.policy, row_ids(batch), key, *pixels.shape[-2:])
        if self._fill is None or self._fill.device != pixels.device:
            self._fill = fill_levels(self.policy.fill, self.channels, pixels.device)
        bilinear = self.policy.interpolation == "bilinear"
        return apply_layers(pixels, layers, bilinear=bilinear, fill=self._fill)

    @torch.no_grad()
    def _erase(self, images: Tensor, batch: Batch) -> Tensor:
        ids, epoch = row_ids(batch), batch["epoch"]
        key = mix_key(self.seed, _ERASE, epoch)
        erasures = draw_erasures(self.erasing, ids, key, *images.shape[-2:])
        noise_seed = mix_key(self.seed, _NOISE, epoch, int(ids[0])) >> 1
        return erase(images, erasures, self.erasing.value, noise_seed)

    @torch.no_grad()
    def _mix(self, images: Tensor, batch: Batch) -> tuple[Tensor, Targets]:
        key = mix_key(self.seed, _MIX, batch["epoch"])
        rows, _, height, width = images.shape
        drawn = draw_mix(self.mixing, int(row_ids(batch)[0]), key, rows, height, width)
        label = batch["label"]
        return images, Targets(label) if drawn is None else mix(images, label, drawn)


def mirror(pixels: Tensor, flip: Tensor) -> Tensor:
    """Return the images with the marked rows mirrored.

    Args:
        pixels: (N, C, H, W).
        flip: bool (N,).
    """
    return torch.where(flip.view(-1, 1, 1, 1), pixels.flip(-1), pixels)


def row_ids(batch: Batch) -> Int64:
    """Return what each row's draws are keyed by, int64 (N,)."""
    # By way of numpy, which refuses what lies on a device, where torch would wait for it.
    return augment_ids(batch["id"].numpy(), batch["copy"].numpy())
