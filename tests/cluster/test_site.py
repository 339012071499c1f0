"""A cluster's settings: read, refused, and turned into sbatch's words and variables."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from resscale.cluster import site
from resscale.cluster.site import (
    Site,
    job_environment,
    load_site,
    make_site,
    sbatch_flags,
    shell_exports,
)
from resscale.errors import UserInputError

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "configs" / "cluster").glob("*.yaml"))


def test_some_settings_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= {"cpu", "gpu", "container"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_file_loads(path: Path) -> None:
    assert isinstance(load_site(path), Site)


def test_null_is_not_set(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("partition: null\nmodules: null\nexclusive: null\n")
    assert load_site(file) == Site()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", r"'partitoin' is not one of partition, .* Did you mean 'partition'\?"),
        ("partition: [a, b]", r"partition=\['a', 'b'\] must be text"),
        ("exclusive: sometimes", "exclusive='sometimes' must be true or false"),
        ("cpus_per_task: 0", "cpus_per_task=0 must be a whole number above 0"),
        ("cpus_per_task: true", "cpus_per_task=True must be a whole number"),
        ("modules: {a: b}", "modules=.* must be a list of texts"),
        ("environment: [A, B]", "environment=.* must be lines `NAME: value`"),
        ("environment: {A: null}", "environment=.* must be lines"),
        ("container_tool: aptainer", r"not apptainer or pyxis.* Did you mean 'apptainer'\?"),
        ("srun_options: ['--mpi none']", "'--mpi none' has a space in it"),
        ("container: my images/a.sif", "'my images/a.sif' has a space in it"),
        ("- gpu", "must hold lines such as `partition: gpu`"),
        ("partition: [", "is not valid YAML"),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UserInputError, match=message):
        load_site(file)


def test_a_missing_file_is_refused_with_what_stands_beside_it(tmp_path: Path) -> None:
    (tmp_path / "alpha.yaml").touch()
    with pytest.raises(UserInputError, match=r"there is no such file.*alpha\.yaml'\?"):
        load_site(tmp_path / "alpah.yaml")


def test_the_site_becomes_words_for_sbatch() -> None:
    site = Site(partition="gpu", account="a1", exclusive=True, sbatch_options=("--mem=0",))
    assert sbatch_flags(site) == ["--partition=gpu", "--account=a1", "--exclusive", "--mem=0"]
    assert sbatch_flags(Site()) == []


def test_without_anything_else_the_python_that_submits_trains() -> None:
    assert job_environment(Site()) == {"RESSCALE_PYTHON": sys.executable}


def test_modules_are_loaded_before_the_commands_behind_them() -> None:
    variables = job_environment(Site(modules=("cuda/12", "gcc"), setup=("source v/bin/activate",)))
    assert variables == {
        "RESSCALE_SETUP": "module load cuda/12 gcc && source v/bin/activate",
        "RESSCALE_PYTHON": "python3",
    }


@pytest.mark.parametrize("another", [Site(modules=("a",)), Site(setup=("a",)), Site(container="a")])
def test_where_python_comes_from_the_site_it_is_found_there(another: Site) -> None:
    assert job_environment(another)["RESSCALE_PYTHON"] == "python3"
    assert job_environment(replace(another, python="py"))["RESSCALE_PYTHON"] == "py"


def test_apptainer_stands_before_python_and_pyxis_among_sruns_options() -> None:
    site = make_site({"container": "a.sif", "container_options": ["--bind=/data"]}, "here")
    assert job_environment(site)["RESSCALE_WRAPPER"] == "apptainer exec --nv --bind=/data a.sif"
    pyxis = Site(container="a", container_tool="pyxis", srun_options=("--mpi=none",))
    variables = job_environment(pyxis)
    assert variables["RESSCALE_SRUN_OPTIONS"] == "--mpi=none --container-image=a"
    assert "RESSCALE_WRAPPER" not in variables


def test_the_network_and_the_scratch_folder_are_variables_of_the_job() -> None:
    site = make_site(
        {"network_interface": "ib0", "scratch": "/scratch", "environment": {"NCCL_DEBUG": 1}}, "x"
    )
    variables = job_environment(site)
    assert variables["NCCL_SOCKET_IFNAME"] == variables["GLOO_SOCKET_IFNAME"] == "ib0"
    assert variables["RESSCALE_CACHE"] == "/scratch"
    assert variables["NCCL_DEBUG"] == "1"


def test_the_lines_for_a_shell_set_the_same_in_a_shell() -> None:
    site = Site(
        partition="a b",
        exclusive=True,
        cpus_per_task=6,
        setup=("echo 'it is'",),
        sbatch_options=("--mem=0",),
    )
    text = shell_exports(site)
    shown = 'printf \'%s|\' "$SBATCH_PARTITION" "$SBATCH_CPUS_PER_GPU" "$RESSCALE_SETUP"'
    said = subprocess.run(
        ["bash", "-c", f"{text}\n{shown}"], capture_output=True, text=True, check=True
    )
    assert said.stdout == "a b|6|echo 'it is'|"
    assert text.splitlines()[-1] == f"# and give sbatch these: {shlex.quote('--mem=0')}"


def test_every_setting_is_described() -> None:
    page = (SHIPPED[0].parents[2] / "slurm" / "README.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    described = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    variables = {name for name in dir(site) if name.endswith("_VARIABLE")}
    assert {field.name for field in fields(Site)} <= described
    assert {getattr(site, name) for name in variables} - {site.CACHE_VARIABLE} <= described
