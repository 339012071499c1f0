"""Makes one environment for each library that the benchmarks compare with, out of the registries.

    python benchmarks/make_peers.py PEERS
    python benchmarks/make_peers.py PEERS --only dali ffcv

What does not install is named with its reason, which is kept in PEERS/<name>.skipped; the
benchmarks then leave its rows out and say why. What is there is kept. torchvision's wheels want the
torch with CUDA: about 5 GB on disk. ffcv is compiled: it needs a C++ compiler, pkg-config, and
Debian's libopencv-dev and libturbojpeg0-dev.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Peer:
    """An environment.

    Args:
        requirements: what pip installs, one call after the other.
        check: Python that must run in it.
        build_isolation: False where its own build needs what the first call installs.
    """

    requirements: tuple[tuple[str, ...], ...]
    check: str
    build_isolation: bool = True


PEERS = {
    # makes the pictures
    "data": Peer(
        (("numpy", "pillow", "opencv-python-headless", "scikit-image", "scikit-learn"),),
        "import cv2, skimage.data, sklearn.datasets",
    ),
    # torchvision and all that stand on it: one torch for all of them, for it is large
    "torch": Peer(
        (("torch", "torchvision", "timm", "webdataset", "litdata", "mosaicml-streaming"),),
        "import timm, webdataset, litdata, streaming; from torchvision.io import decode_image",
    ),
    "dali": Peer((("nvidia-dali-cuda120", "numpy"),), "import nvidia.dali.fn, wds2idx"),
    "ffcv": Peer(
        (
            (
                "setuptools<81",
                "wheel",
                "numpy",
                "numba",
                "torch",
                "pillow",
                "opencv-python-headless",
            ),
            ("ffcv",),
        ),
        "import ffcv.loader, ffcv.fields.rgb_image",
        build_isolation=False,
    ),
}


def python_of(folder: Path, name: str) -> Path:
    """Return the interpreter of an environment."""
    return folder / name / "bin" / "python"


def why_skipped(folder: Path, name: str) -> str | None:
    """Return why an environment cannot be used, None where it can."""
    reason = folder / f"{name}.skipped"
    if reason.exists():
        return reason.read_text().strip()
    if not python_of(folder, name).exists():
        return f"no environment: python benchmarks/make_peers.py {folder} --only {name}"
    return None


def last_words(output: str) -> str:
    """Return the line of a failed program's output that says most: the last that names an error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it ended without a word"])[-1][:300]


def make_peer(folder: Path, name: str) -> str | None:
    """Make an environment and try it; return why that failed, None where it works."""
    peer, python = PEERS[name], str(python_of(folder, name))
    if not Path(python).exists():
        venv.create(folder / name, with_pip=True)
    if _run([python, "-c", peer.check]) is None:
        return None
    isolation = () if peer.build_isolation else ("--no-build-isolation",)
    for requirements in peer.requirements:
        if failed := _run([python, "-m", "pip", "install", "-q", *isolation, *requirements]):
            return failed
    return _run([python, "-c", peer.check])


def _run(command: Sequence[str]) -> str | None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else last_words(done.stderr + done.stdout)


def main() -> int:
    """Make the environments; return 1 where one of them does not work."""
    parser = argparse.ArgumentParser(description="Environments of the libraries compared with.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", choices=PEERS, default=list(PEERS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    failures = 0
    for name in options.only:
        reason = make_peer(options.folder, name)
        skipped = options.folder / f"{name}.skipped"
        skipped.unlink(missing_ok=True)
        if reason:
            failures += 1
            skipped.write_text(reason + "\n")
        print(f"{name}: {'works' if reason is None else 'skipped: ' + reason}", flush=True)
    return min(1, failures)


if __name__ == "__main__":
    sys.exit(main())
