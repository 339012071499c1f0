"""`resscale submit` on a laptop: what it checks, shows and refuses; tests/slurm submits."""

import re
import shlex
from pathlib import Path

import pytest

from resscale.cli_submit import run_submit
from resscale.cluster.submission import batch_script
from resscale.errors import UserInputError

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
DEMO = str(Path(__file__).resolve().parents[1] / "configs" / "demo.yaml")
DRY = ("--config", DEMO, "--dry-run")


@pytest.fixture(autouse=True)
def _without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop, in an empty folder."""
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.chdir(tmp_path)


def command_of(said: str) -> list[str]:
    """The words that would be run, with the variables before them."""
    found = re.search(r"^command: (.*)$", said, re.M)
    assert found
    return shlex.split(found[1])


def test_a_dry_run_shows_plan_command_and_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--nodes", "2", "--gpus_per_node", "4", "--time", "12:00:00", *DRY]
    assert run_submit([*arguments, "--partition", "gpu", "--trainer.max_epochs", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("job: 2 nodes × 4 GPUs = 8 ranks, 12:00:00\nno SLURM here")
    assert "trainer: num_nodes=2, devices=4, from SLURM's tasks\n" in said
    assert "8/rank × 8 ranks × 1 accum = 64 global" in said
    words = command_of(said)
    folder = words[-1]
    assert re.fullmatch(r"runs/demo-\d{8}-\d{6}-[0-9a-f]{6}", folder)
    assert words[1:] == [
        "sbatch", "--parsable", "--export=ALL", "--job-name=demo", "--nodes=2",
        "--gpus-per-node=4", "--ntasks-per-node=4", "--time=12:00:00",
        f"--output={folder}/slurm-%j.out", "--partition=gpu", f"{folder}/train.sbatch",
        "--config", DEMO, "--trainer.max_epochs", "3", "--run_dir", folder,
    ]  # fmt: skip
    assert said.endswith(batch_script())
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]  # nothing is written


def test_the_run_directory_may_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_submit([*DRY, "--run_dir", "100%"]) == 0
    words = command_of(capsys.readouterr().out)
    assert "--output=100%%/slurm-%j.out" in words  # a single % begins a pattern of SLURM's
    assert words.count("--run_dir") == 1


def test_a_sweep_is_an_array_with_a_folder_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    sweeps = ["--sweep", "seed_everything=0,1", "--sweep", "model.optimizer.lr=0.1,0.2"]
    assert run_submit([*DRY, *sweeps, "--max-running", "2"]) == 0
    said = capsys.readouterr().out
    assert "  3: --seed_everything=1 --model.optimizer.lr=0.2\n" in said
    words = command_of(said)
    assert "--array=0-3%2" in words
    assert "--run_dir" not in words
    sweep = next(word for word in words if word.startswith("RESSCALE_SWEEP="))
    assert re.search(r"/runs/demo-sweep-\d{8}-\d{6}-[0-9a-f]{6}$", sweep)


def test_a_fault_of_one_run_names_it() -> None:
    with pytest.raises(UserInputError, match=r"^--data\.global_batch_size=30: .*not divisible"):
        run_submit([*DRY, "--nodes", "4", "--sweep", "data.global_batch_size=64,30"])


def test_a_misspelt_option_of_submit_is_seen() -> None:
    with pytest.raises(UserInputError, match=r"--gpu-per-node is no option.*'--gpus-per-node'\?"):
        run_submit([*DRY, "--gpu-per-node", "8"])
    with pytest.raises(UserInputError, match=r"'model\.modle' is not an option.*model\.model"):
        run_submit([*DRY, "--model.modle", "resnet18"])


def test_a_directory_with_a_run_is_refused(tmp_path: Path) -> None:
    run_dir = tmp_path / "old"
    run_dir.mkdir()
    (run_dir / "summary.json").write_text("{}")
    with pytest.raises(UserInputError, match="old holds a run already"):
        run_submit([*DRY, "--run_dir", "old"])
    assert run_submit([*DRY, "--run_dir", "old", "--ckpt_path", "auto"]) == 0


def test_without_sbatch_nothing_is_begun(tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"there is no sbatch on this machine.*login node"):
        run_submit(["--config", DEMO])
    assert not (tmp_path / "runs").exists()


def test_a_wrong_time_limit_is_refused() -> None:
    with pytest.raises(UserInputError, match="--time=2 is too short"):
        run_submit([*DRY, "--time", "2"])


def test_the_clusters_settings_are_shown_for_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_submit(["--account", "a1", "--modules", "cuda/12", "--print-environment"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "export SBATCH_ACCOUNT=a1",
        "export RESSCALE_SETUP='module load cuda/12'",
        "export RESSCALE_PYTHON=python3",
    ]


def test_help_is_an_end() -> None:
    assert run_submit(["--help"]) == 0
