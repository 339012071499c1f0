"""A DeepSpeed checkpoint folder (ZeRO 0 to 3, any number of ranks) → one state dict.

```
FOLDER/latest                                         the tag, unless the folder is the tag's own
FOLDER/TAG/mp_rank_00_model_states.pt                 ZeRO 0, 1, 2: the whole module
FOLDER/TAG/zero_pp_rank_R_mp_rank_00_model_states.pt  ZeRO 3: names, shapes, buffers
FOLDER/TAG/*zero_pp_rank_R_mp_rank_00_optim_states.pt ZeRO 1, 2, 3: rank R's share of fp32 weights
```

Lightning's tag is `checkpoint`, without `latest`. DeepSpeed itself is not needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resscale.errors import DataFormatError, UserInputError
from resscale.models.weights_safe import load_without_code

_MODEL_FILE = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_SHARE_FILE = re.compile(r"(?:\w+_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_LIGHTNING_TAG = "checkpoint"
# Where a rank's file has its flat fp32 weights, by stage (2 stands for 1 too: they are alike).
_FLAT_WEIGHTS = {"single_partition_of_fp32_groups": 2, "fp32_flat_groups": 3}


@dataclass(frozen=True)
class _Shares:
    """The fp32 weights of all ranks: `groups[rank][i]` is rank's flat part of group i."""

    stage: int
    groups: list[list[Tensor]]
    alignments: list[list[int]] | None
    """Unused elements behind each parameter of each group, ZeRO 1 and 2; None: none."""


def is_part_of_deepspeed(path: Path) -> bool:
    """Tell by its name whether a file is one of those in a DeepSpeed tag's folder."""
    return bool(_MODEL_FILE.fullmatch(path.name) or _SHARE_FILE.fullmatch(path.name))


def read_deepspeed(folder: Path) -> tuple[dict[str, Tensor], str]:
    """Return the module's weights, in fp32 where the folder holds them so, and where they were.

    Args:
        folder: with the file `latest`, of one tag, or as Lightning's DeepSpeed strategy writes it.

    Raises:
        UserInputError: no DeepSpeed checkpoint, or a tensor-parallel one.
        DataFormatError: a rank's file is missing, damaged, contradicts the others, or can be read
            only by executing a pickle.
    """
    tag = _tag_folder(folder)
    try:
        return _read_tag(tag)
    except (UserInputError, DataFormatError):
        raise
    except Exception as error:  # under the right names may stand whatever another program wrote
        reason = (str(error) or "no more is known").splitlines()[0]
        raise _contradiction(tag, f"{type(error).__name__}: {reason}") from error


def _read_tag(tag: Path) -> tuple[dict[str, Tensor], str]:
    model_files = _by_rank(tag, _MODEL_FILE)
    if not model_files:
        raise DataFormatError(f"{tag} has no *_model_states.pt; copy all files of the checkpoint.")
    share_files = _by_rank(tag, _SHARE_FILE)
    first = _load_model_states(model_files[0])
    module = {
        key: value
        for key, value in first["module"].items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    is_whole = all(value.numel() for value in module.values())
    if is_whole and not (share_files and _has_half_precision(module)):
        # ZeRO 0 to 2 save the whole module; in fp32 it equals the master weights.
        return module, "module"
    shares = _load_shares(tag, share_files)
    if shares.stage == 3:
        others = [_load_model_states(model_files[rank]) for rank in sorted(model_files)[1:]]
        weights = _join_stage_3(shares, [first, *others])
    else:
        weights = _join_stage_1_2(shares, first["param_shapes"])
    for alias, name in (first.get("shared_params") or {}).items():
        if name in weights:
            weights[alias] = weights[name]
    _check_agreement(tag, weights, module)
    return {**module, **weights}, "fp32 master weights"


def _tag_folder(folder: Path) -> Path:
    latest = folder / "latest"
    candidates = [folder, folder / _LIGHTNING_TAG]
    if latest.is_file():
        name = latest.read_text(errors="replace").strip()
        # A name and no path: the file must not lead out of its folder.
        if not name or Path(name).name != name or not (folder / name).is_dir():
            raise DataFormatError(
                f"{latest} names the checkpoint {name!r}, and there is no such folder beside it. "
                f"Copy it too, or name the folder of another tag."
            )
        candidates = [folder / name]
    for candidate in candidates:
        if candidate.is_dir() and any(map(is_part_of_deepspeed, candidate.iterdir())):
            return candidate
    raise UserInputError(
        f"{folder} is a folder, but no DeepSpeed checkpoint: *_model_states.pt must be in it, in "
        f"the folder that `latest` names, or in {_LIGHTNING_TAG}/. Name that folder, or a file."
    )


def _by_rank(tag: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    """Return the files that `pattern` matches by data-parallel rank, from 0 without gaps."""
    found: dict[int, Path] = {}
    for path in sorted(tag.iterdir()):
        if match := pattern.fullmatch(path.name):
            if int(match[2]) != 0:
                raise UserInputError(
                    f"{path} belongs to a tensor-parallel checkpoint; only data-parallel ones are "
                    f"read. Merge it with DeepSpeed's own tools first."
                )
            found[int(match[1] or 0)] = path
    # So many files leave a gap below their number if they leave one at all.
    if missing := [rank for rank in range(len(found)) if rank not in found]:
        raise DataFormatError(
            f"{tag} lacks a file of rank {', '.join(map(str, missing))}, beside "
            f"{found[max(found)].name}; copy all files of the checkpoint."
        )
    return found


def _has_half_precision(module: Mapping[str, Tensor]) -> bool:
    return any(value.dtype in (torch.bfloat16, torch.float16) for value in module.values())


def _load_model_states(path: Path) -> dict[str, Any]:
    content = load_without_code(path)
    if not isinstance(content, dict) or not isinstance(content.get("module"), Mapping):
        raise DataFormatError(
            f"{path} has no entry 'module', so it is no DeepSpeed model file; copy it again."
        )
    return content


def _load_shares(tag: Path, files: Mapping[int, Path]) -> _Shares:
    states = []
    for rank in sorted(files):
        content = load_without_code(files[rank])
        state = content.get("optimizer_state_dict") if isinstance(content, dict) else None
        if not isinstance(state, dict) or not any(key in state for key in _FLAT_WEIGHTS):
            raise DataFormatError(
                f"{files[rank]} holds no fp32 weights under "
                f"{' or '.join(map(repr, _FLAT_WEIGHTS))}; convert the checkpoint with DeepSpeed's "
                f"zero_to_fp32.py and load the result."
            )
        states.append(state)
    counts = states[0].get("partition_count") if states else None
    world_size = max(counts) if isinstance(counts, list) else counts
    if world_size != len(states):
        raise DataFormatError(
            f"{tag} has the fp32 weights of {len(states)} ranks, and {world_size or 'more'} saved "
            f"it; copy all *_optim_states.pt of the checkpoint."
        )
    key = next(key for key in _FLAT_WEIGHTS if key in states[0])
    groups = [[group.detach().flatten() for group in state[key]] for state in states]
    return _Shares(_FLAT_WEIGHTS[key], groups, states[0].get("param_alignment_paddings"))


def _join_stage_1_2(shares: _Shares, shapes: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Cut the parameters out of the groups, each of which is the ranks' parts end to end."""
    weights: dict[str, Tensor] = {}
    for i, named_shapes in enumerate(shapes):
        flat = torch.cat([parts[i] for parts in shares.groups])
        padding = shares.alignments[i] if shares.alignments else [0] * len(named_shapes)
        start = 0
        for (name, shape), unused in zip(named_shapes.items(), padding, strict=True):
            weights[name] = flat.narrow(0, start, math.prod(shape)).view(tuple(shape))
            start += math.prod(shape) + unused
    return weights


def _join_stage_3(shares: _Shares, states: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Join the parameters, each of which was cut into equal parts over the ranks, padded."""
    world_size = len(shares.groups)
    flats = [torch.cat(parts) for parts in shares.groups]
    weights: dict[str, Tensor] = {}
    start = 0
    for name, shape in chain.from_iterable(group.items() for group in states[0]["param_shapes"]):
        size = math.ceil(math.prod(shape) / world_size)
        weights[name] = _unpad([flat.narrow(0, start, size) for flat in flats], shape)
        start += size
    if any(start != len(flat) for flat in flats):
        raise ValueError(f"the shapes need {start} of {len(flats[0])} elements of a rank")
    for name, shape in (states[0].get("frozen_param_shapes") or {}).items():
        parts = [state["frozen_param_fragments"][name].flatten() for state in states]
        weights[name] = _unpad(parts, shape)
    return weights


def _unpad(parts: Sequence[Tensor], shape: Any) -> Tensor:
    return torch.cat(list(parts)).narrow(0, 0, math.prod(shape)).view(tuple(shape))


def _check_agreement(
    tag: Path, weights: Mapping[str, Tensor], module: Mapping[str, Tensor]
) -> None:
    """Compare with the module's own weights where they are there: a wrong cut must not pass."""
    for name, own in module.items():
        joined = weights.get(name)
        if joined is None:
            if own.numel() == 0:
                raise _contradiction(tag, f"{name} is in no rank's share")
        elif own.numel():
            # Half precision rounds by up to 2**-8 (bfloat16) of the value.
            largest = own.float().nan_to_num().abs().max().item()
            if own.shape != joined.shape or not torch.allclose(
                own.float(), joined.float(), rtol=0.0, atol=2**-7 * largest, equal_nan=True
            ):
                raise _contradiction(tag, f"{name} differs from the module's")


def _contradiction(tag: Path, reason: str) -> DataFormatError:
    return DataFormatError(
        f"{tag}: the fp32 weights of the ranks cannot be put together ({reason}). Convert the "
        f"checkpoint with DeepSpeed's zero_to_fp32.py and load the result."
    )
