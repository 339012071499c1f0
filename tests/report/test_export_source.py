"""What is exported from: runs, checkpoints, DeepSpeed folders and plain files, all read safely."""

import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from resscale.errors import DataFormatError, UserInputError
from resscale.report.export_source import find_weights, read_source
from resscale.training.checkpoint_io import AtomicCheckpointIO

FIXTURES = Path(__file__).parents[1] / "models" / "fixtures"
CONFIG = {"model": {"model": "resnet8_cifar"}}


def weights(value: float, prefix: str = "model.") -> dict[str, torch.Tensor]:
    return {f"{prefix}fc.weight": torch.full((2, 3), value)}


def save(path: Path, **more: Any) -> Path:
    """Write a checkpoint whose one weight is the optimizer step that its name ends with."""
    path.parent.mkdir(parents=True, exist_ok=True)
    step = int(path.stem.rpartition("-")[2]) if "-" in path.stem else 0
    torch.save({"state_dict": weights(step), **more}, path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints and a configuration."""
    folder = tmp_path / "run"
    for step in (10, 20):
        save(folder / "checkpoints" / f"epoch-0001-step-{step:08d}.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def test_a_run_stands_for_its_best_checkpoint(run: Path) -> None:
    best = save(run / "checkpoints" / "best.ckpt")
    path, found = find_weights(run)
    assert path == best
    assert found is not None
    assert found.path == run


def test_a_run_without_a_best_checkpoint_stands_for_its_newest(run: Path) -> None:
    for asked in (run, run / "checkpoints"):
        assert read_source(asked).raw["model.fc.weight"][0, 0] == 20


def test_a_torn_checkpoint_of_a_run_is_passed_over(run: Path) -> None:
    newest = run / "checkpoints" / "epoch-0001-step-00000020.ckpt"
    newest.write_bytes(newest.read_bytes()[:-400])
    assert read_source(run).raw["model.fc.weight"][0, 0] == 10


def test_a_run_without_a_whole_checkpoint_is_refused(run: Path) -> None:
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(b"torn")
    with pytest.raises(UserInputError, match=r"checkpoints holds no whole checkpoint; name anoth"):
        read_source(run)


def test_a_checkpoint_of_a_run_knows_its_run_and_another_does_not(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = run / "checkpoints" / "epoch-0001-step-00000010.ckpt"
    source = read_source(inside)
    assert source.run is not None
    assert source.run.path == run
    assert source.raw["model.fc.weight"][0, 0] == 10
    moved = inside.rename(run.parent / "moved-10.ckpt")
    assert read_source(moved).run is None
    # A folder of the run that is not its own checkpoints' holds whatever the user put there.
    assert read_source(save(run / "other" / "best.ckpt")).run is None
    # Named without its folder.
    monkeypatch.chdir(run / "checkpoints")
    here = read_source(Path("epoch-0001-step-00000020.ckpt"))
    assert here.run is not None
    assert here.run.path == run


def test_what_resscale_wrote_beside_the_weights_is_found(tmp_path: Path) -> None:
    state = {"global_step": 7, "config": CONFIG}
    source = read_source(save(tmp_path / "a-7.ckpt", resscale=state))
    assert source.state == state
    assert source.config == CONFIG


def test_a_checkpoint_without_a_configuration_takes_its_runs(run: Path) -> None:
    path = save(run / "checkpoints" / "best.ckpt", resscale={"global_step": 7, "config": None})
    assert read_source(path).config == CONFIG


def test_a_configuration_is_not_taken_for_that_of_another_programs_checkpoint(run: Path) -> None:
    # It lies in the run's folder, but resscale did not write it.
    assert read_source(save(run / "checkpoints" / "best.ckpt")).config == {}


def test_a_checkpoint_with_a_changed_weight_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "sealed.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": weights(7.0)}, path)
    assert read_source(path).raw["model.fc.weight"][0, 0] == 7
    content = path.read_bytes()
    before, after = (torch.full((6,), value).numpy().tobytes() for value in (7.0, 7.5))
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, after))
    with pytest.raises(DataFormatError, match=r"sealed\.ckpt is damaged: its bytes are not those"):
        read_source(path)


@pytest.mark.parametrize("name", ["ema_state_dict", "state_dict_ema"])
def test_averaged_weights_are_found_and_given_on_request(tmp_path: Path, name: str) -> None:
    source = read_source(save(tmp_path / "a-7.ckpt", **{name: weights(0.5)}))
    assert source.weights(averaged=False)["model.fc.weight"][0, 0] == 7
    assert source.weights(averaged=True)["model.fc.weight"][0, 0] == 0.5


def test_averaged_weights_that_are_not_there_are_refused(tmp_path: Path) -> None:
    source = read_source(save(tmp_path / "a-7.ckpt"))
    with pytest.raises(UserInputError, match=r"a-7\.ckpt has no averaged weights .* Leave --ema"):
        source.weights(averaged=True)


@pytest.mark.parametrize(
    "stage", ["zero0", "zero1", "zero1_bf16", "zero2", "zero2_bf16", "zero3", "zero3_bf16"]
)
def test_a_deepspeed_folder_gives_the_weights_that_deepspeed_had(
    tmp_path: Path, stage: str
) -> None:
    with tarfile.open(FIXTURES / "deepspeed.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    source = read_source(tmp_path / stage)
    expected = torch.load(tmp_path / stage / "expected.pt", weights_only=True)
    found = {key.removeprefix("model."): value for key, value in source.raw.items()}
    assert set(found) == set(expected)
    assert all(torch.equal(found[key].to(value.dtype), value) for key, value in expected.items())
    assert (source.config, source.averaged, source.run) == ({}, None, None)


def test_a_folder_of_runs_is_refused_with_one_of_them(run: Path) -> None:
    with pytest.raises(UserInputError, match=rf"neither a run .* Did you mean '{run}'\?$"):
        read_source(run.parent)


def test_a_name_that_is_not_there_suggests_the_nearest(run: Path) -> None:
    with pytest.raises(UserInputError, match=rf"there is no .*/rum; .* Did you mean '{run}'\?$"):
        read_source(run.parent / "rum")


class Runs:
    """A pickle that would run a program, if it were loaded as pickles are."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    path = save(tmp_path / "a-7.ckpt", resscale=Runs(marker))
    with pytest.raises(DataFormatError, match="cannot be read without executing code"):
        read_source(path)
    assert not marker.exists()


def test_a_damaged_configuration_of_a_run_is_said(run: Path) -> None:
    (run / "config.yaml").write_text("a: [")
    path = save(run / "checkpoints" / "best.ckpt", resscale={"global_step": 7})
    with pytest.raises(DataFormatError, match=r"config\.yaml is not valid YAML"):
        read_source(path)
