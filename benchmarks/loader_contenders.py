"""The loaders that benchmarks/loader.py compares, and the files that each reads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from make_peers import python_of, why_skipped

from resscale.errors import nearest

SCRIPTS = Path(__file__).resolve().parent / "peers"
OURS = "ours"
REFERENCE = "torchvision"


@dataclass(frozen=True)
class Contender:
    """One loader on one set of files.

    Args:
        name: for the command line.
        label: for the table.
        env: its environment of make_peers.py; "ours" is this interpreter's.
        data: "originals", "side500", "side320" or "side320q95".
        script: below peers/, with the arguments in front of the place.
        place: what it reads, below the data folder.
        more: arguments behind the place; `{images}` is their number.
    """

    name: str
    label: str
    env: str
    data: str
    script: tuple[str, ...]
    place: str
    more: tuple[str, ...] = ()

    def command(self, peers: Path, data: Path, images: int, batch_size: int) -> list[str]:
        """Return the program that serves its epochs."""
        python = sys.executable if self.env == OURS else str(python_of(peers, self.env))
        script, *before = self.script
        more = [part.format(images=images) for part in self.more]
        return [
            *(python, str(SCRIPTS / script), *before, str(data / self.place), *more),
            *("--batch_size", str(batch_size)),
        ]

    def why_skipped(self, peers: Path, data: Path) -> str | None:
        """Return why it cannot be measured here, None where it can."""
        if self.env != OURS and (reason := why_skipped(peers, self.env)):
            return reason
        if not (data / self.place).exists():
            return f"{self.place} is missing: python benchmarks/loader_data.py"
        return None


def _ours(decoder: str, data: str, kind: str = "threads", workers: int = 1) -> Contender:
    flips = ("--decoder", decoder, "--kind", kind, "--workers", str(workers), "--flip")
    what = {"threads": "thread", "processes": "process"}[kind]
    readers = f"{workers} {what}" + ("s" if workers > 1 and kind == "threads" else "")
    readers += "es" if workers > 1 and kind == "processes" else ""
    return Contender(
        f"{decoder}-{data}" if (kind, workers) == ("threads", 1) else f"{decoder}-{workers}-{kind}",
        f"resscale, {decoder}, {readers}",
        OURS,
        data,
        ("ours_loader.py",),
        f"shards/{data}/train",
        flips,
    )


def _torch(
    name: str, label: str, place: str, data: str = "originals", env: str = "torch", workers: int = 0
) -> Contender:
    full = name if data == "originals" else f"{name}-{data}"
    if workers:
        full += f"-{workers}"
        label += f", {workers} process"
    return Contender(
        full,
        label,
        env,
        data,
        ("torch_loaders.py", name),
        place,
        ("--images", "{images}", "--workers", str(workers)),
    )


def _dali(kind: str, data: str, place: str) -> Contender:
    label = f"DALI on the CPU, {kind}, 1 thread"
    more = ("--images", "{images}", "--workers", "1")
    return Contender(
        f"dali-{kind}-{data}", label, "dali", data, ("dali_loader.py", kind), place, more
    )


def _ffcv(name: str, label: str, data: str) -> Contender:
    script = ("ffcv_loader.py",)
    return Contender(f"ffcv-{name}", label, "ffcv", data, script, f"ffcv/{name}.beton")


PEERS = (
    _torch("torchvision", "torchvision ImageFolder + PIL", "originals"),
    _torch("torchvision", "torchvision ImageFolder + PIL", "originals", workers=1),
    _torch("torchvision-v2", "torchvision v2 + decode_image", "originals"),
    _torch("timm", "timm, folder", "originals"),
    _torch("timm-wds", "timm, wds", "shards/originals/train"),
    _torch("webdataset", "webdataset + PIL", "shards/originals/train"),
    _torch("streaming", "MosaicML Streaming", "mds/originals"),
    _torch("litdata", "litData", "litdata/originals"),
    _dali("files", "originals", "originals"),
    _dali("shards", "originals", "shards/originals/train"),
    _ffcv("originals", "ffcv, full size, encoded anew q90, 1 thread", "originals"),
    _ours("native", "originals"),
    _ours("nvimgcodec", "originals"),
    _ours("simplejpeg", "originals"),
    _ours("pillow", "originals"),
    _torch("torchvision", "torchvision ImageFolder + PIL", "side500", data="side500"),
    _dali("files", "side500", "side500"),
    _ffcv("side500", "ffcv, q90, 1 thread", "side500"),
    _ffcv("side500-half-raw", "ffcv, half of the images raw, 1 thread", "side500"),
    _ours("native", "side500"),
    _ours("nvimgcodec", "side500"),
    _torch("webdataset", "webdataset + PIL", "shards/side320/train", data="side320"),
    _dali("shards", "side320", "shards/side320/train"),
    _ours("native", "side320"),
    _ours("native", "side320q95"),
    _ours("nvimgcodec", "side320"),
)
WORKERS = (
    _torch("torchvision", "torchvision ImageFolder + PIL", "originals"),
    *(
        _ours(decoder, "originals", kind, workers)
        for decoder in ("native", "nvimgcodec", "pillow")
        for workers in (1, 2)
        for kind in ("threads", "processes")
    ),
)
GROUPS = {"peers": PEERS, "workers": WORKERS}


def select(group: str, names: Sequence[str] | None) -> list[Contender]:
    """Return the contenders of a group, or those named of it and the reference.

    Raises:
        ValueError: a name that the group has not.
    """
    known = {contender.name: contender for contender in GROUPS[group]}
    if names is None:
        return list(known.values())
    for name in names:
        if name not in known:
            raise ValueError(
                f"--only {name} is not known.{nearest(name, known)} There are {', '.join(known)}."
            )
    return [known[name] for name in known if name in {REFERENCE, *names}]
