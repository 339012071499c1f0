"""Load the weights of a file, a DeepSpeed folder or a URL into a model, or say why they do not fit.

```
path or URL -> local file -> tensors by the file's keys -> by short names -> compared -> copied
```
"""

from __future__ import annotations

import os
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from resscale.errors import DataFormatError, UserInputError
from resscale.models.weights_download import download, shown
from resscale.models.weights_files import read_weights
from resscale.models.weights_fit import by_short_name, compare, explain, is_classifier


@dataclass(frozen=True)
class LoadedWeights:
    """What `load_weights` has done."""

    source: str
    """The path or URL, a URL without its query."""
    entry: str
    """Which entry of the file held the weights; empty: the file as a whole."""
    num_tensors: int
    """How many tensors of the model have the file's values now."""
    skipped: tuple[str, ...]
    """Keys of the file that were not used, without the names of wrappers."""
    missing: tuple[str, ...]
    """Keys of the model that the file does not have; they are as they were."""


def load_weights(
    model: nn.Module,
    path_or_url: str | os.PathLike[str],
    *,
    strict: bool = True,
    skip_classifier: bool = False,
    timeout_s: float = 30.0,
    check_hash: bool = True,
) -> LoadedWeights:
    """Copy weights into `model`, in place; its dtypes, devices and memory formats stay.

    Nothing in a file is executed. Leading `module.` and `model.`, and `_orig_mod.` and
    `_forward_module.` anywhere, are taken off the keys of both sides before they are compared.
    Missing `num_batches_tracked` are let be. Nothing changes in the model if this raises.

    Args:
        model: any module; a ResNet has torchvision's or timm's keys, so their files fit.
        path_or_url: `.pth`, `.pt`, `.bin`, `.safetensors`, a Lightning `.ckpt`, a DeepSpeed
            checkpoint's folder; or a `file:`, `http:` or `https:` URL of a file.
        strict: refuse missing and unexpected keys. A differing shape is refused in any case.
        skip_classifier: leave the last layer (`fc`, `head.fc`) as it is.
        timeout_s: seconds without a byte from a server after which a download is tried again.
        check_hash: compare a download's SHA-256 with the digits that end its name.

    Raises:
        UserInputError: no such file, a failed download, or weights that do not fit the model.
        DataFormatError: damaged, without weights, or readable only by executing a pickle.
    """
    source = os.fspath(path_or_url)
    targets = by_short_name(_tensors_of(model), "The model")
    path, is_download = _localize(source, timeout_s, check_hash)
    source = shown(source) if is_download else source
    try:
        file = read_weights(path)
    except DataFormatError:
        if is_download:
            path.unlink(missing_ok=True)  # what cannot be read must not stay for the next time
        raise
    tensors = by_short_name(file.tensors, source)
    skipped: list[str] = []
    if skip_classifier:
        skipped = [name for name in tensors if is_classifier(name)]
        tensors = {name: value for name, value in tensors.items() if not is_classifier(name)}
        targets = {name: value for name, value in targets.items() if not is_classifier(name)}
    own, other = _shapes(targets), _shapes(tensors)
    fit = compare(own, other)
    if fit.misshapen or not fit.matched or (strict and (fit.missing or fit.unexpected)):
        raise UserInputError(explain(fit, own, other, source, strict=strict))
    with torch.no_grad():
        for name in fit.matched:
            targets[name].copy_(tensors[name])
    return LoadedWeights(
        source, file.entry, len(fit.matched), (*skipped, *fit.unexpected), fit.missing
    )


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the state dict; they share the model's memory."""
    state = model.state_dict()
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    for key, value in tensors.items():
        if value.is_meta:
            raise UserInputError(
                f"The model's {key!r} is on the meta device, which holds no values: call "
                f"model.to_empty(device='cpu') before loading weights."
            )
    return tensors


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _localize(source: str, timeout_s: float, check_hash: bool) -> tuple[Path, bool]:
    """Return the local path of a source, and whether it was downloaded."""
    scheme = source.partition("://")[0].lower() if "://" in source else ""
    if scheme in ("http", "https"):
        return download(source, timeout_s=timeout_s, check_hash=check_hash), True
    if source.lower().startswith("file:"):
        parts = urllib.parse.urlsplit(source)
        if parts.netloc not in ("", "localhost"):
            raise UserInputError(
                f"{source} names the host {parts.netloc!r}; a file: URL must be of this machine: "
                f"file:///folder/name, with three slashes."
            )
        return Path(urllib.request.url2pathname(parts.path)), False
    if scheme:
        raise UserInputError(
            f"{shown(source)} begins with {scheme}://, and weights come from a path or from file:, "
            f"http: or https:. Copy the file to this machine and give its path."
        )
    return Path(source).expanduser(), False
