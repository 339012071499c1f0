"""What a net costs in multiply-accumulates."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from resscale.models.options import check_positive


def count_macs(model: nn.Module, image_size: int, in_channels: int = 3) -> int:
    """Return the multiply-accumulates of one image's forward pass (convolutions and linear).

    The unit is that of table 1's "FLOPs": one multiply and one add count as 1. A training step
    costs about `3 * 2 * MACs` floating-point operations per image (backward is twice forward).
    Nothing is computed and the model is left as it was: it runs on shapes alone.

    Args:
        model: any net from `(B, in_channels, image_size, image_size)`, on any device.
        image_size: pixels per side.
        in_channels: channels of the input.
    """
    check_positive("image_size", image_size)
    check_positive("in_channels", in_channels)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    # Stand-ins take BN's running statistics as well, which a training-mode forward would change.
    stand_ins = {k: torch.empty(t.shape, dtype=t.dtype, device="meta") for k, t in tensors.items()}
    dtype = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
    # Two images, because a training-mode BN refuses a single value per channel.
    batch = 2
    x = torch.empty(batch, in_channels, image_size, image_size, dtype=dtype, device="meta")
    with torch.no_grad(), _eagerly(model), FlopCounterMode(display=False) as counter:
        functional_call(model, stand_ins, (x,))
    return int(counter.get_total_flops()) // (2 * batch)


def _eagerly(model: nn.Module) -> AbstractContextManager[object]:
    """Keep torch.compile off: what it meets under a counter it never again compiles."""
    if all(part._compiled_call_impl is None for part in model.modules()):
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
