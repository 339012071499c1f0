"""Versions: asked for, known to be bad, and those of this environment."""

import pytest

from resscale.cluster.doctor.finding import worst
from resscale.cluster.doctor.versions import (
    KNOWN_BAD,
    check_versions,
    installed_versions,
    required_versions,
)

REQUIRED = {"torch": ">=2.11,<2.14", "lightning": ">=2.6.1,<2.7"}
GOOD = {"python": "3.11.7", "torch": "2.13.0+cpu", "lightning": "2.6.6"}


def test_versions_that_fit_are_shown() -> None:
    (found,) = check_versions(GOOD, REQUIRED)
    assert found.level == "ok"
    assert found.text == "python 3.11.7, torch 2.13.0+cpu, lightning 2.6.6"


@pytest.mark.parametrize("package", ["lightning", "pytorch-lightning"])
@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_releases_that_steal_credentials_fail(package: str, version: str) -> None:
    (found,) = check_versions({**GOOD, package: version}, REQUIRED)
    assert found.level == "fail"
    assert f"{package} {version} steals credentials" in found.text
    assert "take every credential of this account for stolen" in found.remedy


@pytest.mark.parametrize(
    ("version", "level"),
    [("2.26.1", "warn"), ("2.26.2", "ok"), ("2.29.2", "warn"), ("2.29.3", "ok")],
)
def test_a_nccl_that_may_hang_is_warned_of(version: str, level: str) -> None:
    assert worst(check_versions({**GOOD, "nccl": version}, REQUIRED)) == level


def test_a_version_outside_of_what_is_asked_for_fails() -> None:
    (found,) = check_versions({**GOOD, "torch": "2.10.1"}, REQUIRED)
    assert found.level == "fail"
    assert found.text == "torch 2.10.1 is installed, and resscale is made for >=2.11,<2.14"
    assert found.remedy == 'pip install "torch>=2.11,<2.14"'


def test_a_missing_package_fails() -> None:
    (found,) = check_versions({"torch": "2.13.0"}, REQUIRED)
    assert found.level == "fail"
    assert found.text.startswith("lightning is missing")


def test_every_known_fault_names_its_source_and_a_remedy() -> None:
    for bad in KNOWN_BAD:
        assert "#" in bad.why
        assert bad.remedy


def test_this_environment_is_well() -> None:
    installed, required = installed_versions(), required_versions()
    assert {"torch", "lightning", "webdataset"} <= required.keys() <= installed.keys()
    # What extras ask for is not required: scipy is one of them.
    assert "scipy" not in required
    assert worst(check_versions(installed, required)) == "ok"
