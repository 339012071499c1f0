"""Which decoder a run uses: the best that works here, or the one that was asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Literal, get_args

from resscale.data.decode import Decoder
from resscale.errors import UserInputError, nearest

DecoderName = Literal["native", "nvimgcodec", "simplejpeg", "pillow", "nvimgcodec_gpu"]
DecoderChoice = Literal["auto", "native", "nvimgcodec", "simplejpeg", "pillow", "nvimgcodec_gpu"]

# Fastest first, but for that of GPUs, which auto does not take: module, class, and the
# distributions whose versions can change a pixel.
_DECODERS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "native": ("decode_native", "NativeDecoder", ("resscale",)),
    "nvimgcodec": ("decode_nvimgcodec", "NvimgcodecDecoder", ("nvidia-nvimgcodec-cu12", "torch")),
    "simplejpeg": ("decode_simplejpeg", "SimpleJpegDecoder", ("simplejpeg", "torch")),
    "pillow": ("decode_pillow", "PillowDecoder", ("pillow",)),
    "nvimgcodec_gpu": (
        "decode_nvimgcodec_gpu",
        "NvimgcodecGpuDecoder",
        ("nvidia-nvimgcodec-cu12", "torch"),
    ),
}
# These give the same bytes: libjpeg-turbo's accurate decoding and torch's resize, both of them.
_ALIKE = frozenset({"nvimgcodec", "simplejpeg"})


def choose_decoder(choice: str = "auto", before: str | None = None) -> DecoderName:
    """Return the decoder to use.

    Args:
        choice: its name; "auto" takes the one of `before` where that works here, else the first of
            native, nvimgcodec, simplejpeg and pillow that does.
        before: the decoder that the run has used so far, if any.

    Raises:
        UserInputError: no such decoder, or it does not work here.
    """
    if choice == "auto":
        names = [before] if before in _DECODERS else []
        for name in (*names, *get_args(DecoderName)):
            if why_not(name) is None:
                return _named(name)
    if choice not in _DECODERS:
        raise UserInputError(
            f"data.decoder={choice} is not known.{nearest(choice, ('auto', *_DECODERS))} There are "
            f"auto, {', '.join(_DECODERS)}."
        )
    if reason := why_not(choice):
        raise UserInputError(
            f"data.decoder={choice} cannot be used: {reason}; or set data.decoder=auto, "
            f"which takes the best that works here."
        )
    return _named(choice)


def build_decoder(choice: str = "auto", channels: int = 3) -> Decoder:
    """Return a decoder for `channels` (3: RGB, 1: luminance); see `choose_decoder`.

    Raises:
        UserInputError: no such decoder, or it does not work here.
    """
    module, name, _ = _DECODERS[choose_decoder(choice)]
    decoder: Decoder = getattr(importlib.import_module(f"resscale.data.{module}"), name)(channels)
    return decoder


def why_not(name: str) -> str | None:
    """Return why a known decoder cannot be used here, and the remedy; None where it can."""
    if name == "pillow":
        return None
    try:
        module = importlib.import_module(f"resscale.data.{_DECODERS[name][0]}")
    except ImportError as error:
        return f"the {name} decoder is not part of this installation ({error})"
    ask: Callable[[], str | None] = module.why_not
    return ask()


def describe_decoder(name: str) -> str:
    """Return a decoder's name and the versions that its pixels depend on."""
    found = []
    for distribution in _DECODERS[name][2]:
        try:
            found.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(distribution)
    if name == "native":
        from resscale._native import jpeg

        found.append(f"libjpeg {jpeg.LIBJPEG}")
    return f"{name} ({', '.join(found)})"


def warn_of_other_decoder(before: str | None, now: str) -> str | None:
    """Return what to say where a run goes on with another decoder than before, None if nothing.

    Args:
        before: the decoder so far; None where it is not known.
        now: the decoder from here on.
    """
    if before is None or before == now or {before, now} <= _ALIKE:
        return None
    reason = why_not(before) if before in _DECODERS else "it is not known to this version"
    because = f" ({before}: {reason})" if reason else ""
    return (
        f"warning: this run has decoded with {before} so far and goes on with {now}: the same "
        f"images in the same order, but some pixels differ in their last bits, so it is not "
        f"bitwise the run that it would have been{because}."
    )


def _named(name: str) -> DecoderName:
    for known in get_args(DecoderName):
        if known == name:
            return known  # type: ignore[no-any-return]
    raise AssertionError(name)
