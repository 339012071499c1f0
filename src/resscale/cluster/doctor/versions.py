"""Which versions are installed, which are asked for, and which are known to be bad."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from resscale.cluster.doctor.finding import Finding, Level

NAME = "versions"
_CREDENTIALS = (
    "remove it, take every credential of this account for stolen and replace it, then "
    'pip install "lightning>=2.6.1,!=2.6.2,!=2.6.3"'
)
_NEWER_TORCH = (
    "install the torch that brings a newer NCCL, or a newer nvidia-nccl package beside it"
)


@dataclass(frozen=True)
class KnownBad:
    """Versions of a package that somebody has lost a night to.

    Args:
        package: its name.
        versions: specifiers, as pip takes them; one of them is enough.
        level: how bad.
        why: and who says so.
        remedy: what to do.
    """

    package: str
    versions: tuple[str, ...]
    level: Level
    why: str
    remedy: str


KNOWN_BAD = (
    *(
        KnownBad(
            package,
            ("==2.6.2", "==2.6.3"),
            "fail",
            "steals credentials as soon as it is imported (GHSA-w37p-236h-pfx3, "
            "pytorch-lightning #21691)",
            _CREDENTIALS,
        )
        for package in ("lightning", "pytorch-lightning")
    ),
    KnownBad("nccl", ("==2.29.2",), "warn", "may hang (pytorch #174338)", _NEWER_TORCH),
    KnownBad(
        "nccl",
        ("<2.26.2",),
        "warn",
        "may hang when a rank that failed leaves (pytorch #149351)",
        _NEWER_TORCH,
    ),
)


def check_versions(
    installed: Mapping[str, str],
    required: Mapping[str, str],
    known_bad: Sequence[KnownBad] = KNOWN_BAD,
) -> list[Finding]:
    """Judge versions.

    Args:
        installed: package -> version.
        required: package -> specifier that resscale asks for.
        known_bad: what to warn of.
    """
    faults = []
    for package, specifier in required.items():
        version = installed.get(package)
        if version is None:
            faults.append(
                Finding(
                    NAME,
                    "fail",
                    f"{package} is missing, and resscale needs it",
                    f'pip install "{package}{specifier}"',
                )
            )
        elif not SpecifierSet(specifier).contains(version, prereleases=True):
            faults.append(
                Finding(
                    NAME,
                    "fail",
                    f"{package} {version} is installed, and resscale is made for {specifier}",
                    f'pip install "{package}{specifier}"',
                )
            )
    for bad in known_bad:
        version = installed.get(bad.package)
        if version is not None and any(
            SpecifierSet(one).contains(version, prereleases=True) for one in bad.versions
        ):
            faults.append(
                Finding(NAME, bad.level, f"{bad.package} {version} {bad.why}", bad.remedy)
            )
    return faults or [Finding(NAME, "ok", describe(installed))]


def describe(installed: Mapping[str, str]) -> str:
    """Return the versions that decide about a run, in one line."""
    shown = ("python", "torch", "cuda", "nccl", "lightning", "webdataset", "deepspeed")
    return ", ".join(f"{name} {installed[name]}" for name in shown if name in installed)


def required_versions() -> dict[str, str]:
    """Return what resscale's own metadata asks for, package -> specifier, extras left out."""
    try:
        lines = importlib.metadata.requires("resscale") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    needed = [Requirement(line) for line in lines]
    return {r.name: str(r.specifier) for r in needed if r.marker is None or r.marker.evaluate()}


def installed_versions() -> dict[str, str]:
    """Return package -> version of what a run is made of; what is missing is left out."""
    found = {"python": platform.python_version()}
    for name in (*required_versions(), "pytorch-lightning", "deepspeed"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if torch.version.cuda is not None:
        found["cuda"] = torch.version.cuda
        found["nccl"] = ".".join(str(part) for part in torch.cuda.nccl.version())  # type: ignore[no-untyped-call]
    return found
