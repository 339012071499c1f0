"""fit, validate, test and predict from the command line: what they say, refuse and leave behind."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from rank_server import variables_of
from resscale.cli import main
from resscale.data.builtin import resolve
from resscale.data.decoders import choose_decoder, describe_decoder

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
        r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
        "ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning",
    ),
    pytest.mark.usefixtures("_clean_environment"),
]
CONFIG: dict[str, Any] = {
    "model": {"model": "resnet20_cifar", "num_classes": 10, "mean": [0.3053], "std": [0.3762]},
    "data": {
        "train": "builtin:digits/train",
        "val": "builtin:digits/test",
        "test": "builtin:digits/test",
        "channels": 1,
        "image_size": 8,
        "train_crop": "center",
        "global_batch_size": 64,
        "eval_batch_size": 360,
        "num_workers": 0,
    },
    "trainer": {"limit_train_batches": 3, "max_epochs": 1, "accelerator": "cpu"},
}
Refuse = Callable[..., str]


@pytest.fixture(scope="module")
def _clean_environment() -> Any:
    """Take back what a run leaves in the environment for its ranks."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return str(path)


@pytest.fixture
def refuse(
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Refuse:
    """A function that runs `resscale fit`, wants exit code 2 and one message, and returns it."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str) -> str:
        assert main(["fit", "--config", config, *options]) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        assert "Traceback" not in said.err
        return said.err.removeprefix("resscale: ").removesuffix("\n")

    return run


@pytest.fixture(scope="module")
def trained(config: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A run of 3 steps: its directory, and the lines that it printed."""
    run_dir = tmp_path_factory.mktemp("runs") / "one"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["fit", "--config", config, "--run_dir", str(run_dir)]) == 0
    return run_dir, out.getvalue().splitlines()


def test_fit_prints_the_run_directory_first_then_what_its_numbers_come_to(
    trained: tuple[Path, list[str]],
) -> None:
    run_dir, lines = trained
    assert lines[0] == f"run directory: {run_dir}"
    # 0.1 · 64/256 = 0.025
    assert lines[1] == "64/rank × 1 rank × 1 accum = 64 global; lr 0.1 × 64/256 = 0.025"
    # 1,437 = 22 · 64 + 29
    # resnet20_cifar of one channel at 8x8: 2.5 million multiply-adds.
    assert lines[2].startswith("269,434 parameters, 0.00252 GMACs at 8x8; ")
    assert lines[2].endswith(
        "1,437 training samples = 22 steps per epoch, 29 left over (others each epoch)"
    )
    assert lines[3] == f"decoder: {describe_decoder(choose_decoder())}"


def test_fit_ends_with_the_result_and_the_next_command(
    trained: tuple[Path, list[str]],
) -> None:
    run_dir, lines = trained
    summary = json.loads((run_dir / "summary.json").read_text())
    assert lines[-3].startswith(
        f"done: val top-1 {summary['val_top1']:.2%}, 192 images seen, "  # 3 · 64
    )
    assert lines[-2] == f"run directory: {run_dir}"
    assert lines[-1] == f"next:  resscale validate --run_dir {run_dir} --ckpt_path best"


def test_micro_batches_are_accumulated_to_the_global_batch(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data.micro_batch_size", "16", "--trainer.limit_train_batches", "8"]
    assert main(["fit", "--config", config, "--run_dir", str(tmp_path / "run"), *options]) == 0
    assert "16/rank × 1 rank × 4 accum = 64 global" in capsys.readouterr().out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    # 8 micro-batches of 16 are 2 optimizer steps of 64.
    assert (summary["global_step"], summary["samples_seen"]) == (2, 128)


def test_an_accumulation_of_the_users_own_is_refused(refuse: Refuse) -> None:
    said = refuse("--trainer.accumulate_grad_batches", "2")
    assert said.startswith("trainer.accumulate_grad_batches=2 is not yours to set")


def test_a_limit_that_ends_in_the_middle_of_a_step_is_refused(refuse: Refuse) -> None:
    said = refuse("--data.micro_batch_size", "16", "--trainer.limit_train_batches", "6")
    assert said == (
        "trainer.limit_train_batches=6 is 6 micro-batches, no multiple of the 4 that make up a "
        "step; choose 4."
    )


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero:UserWarning")
def test_without_validation_shards_there_is_a_result_and_another_next_command(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    arguments = ["--config", config, "--run_dir", str(run_dir), "--data.val", "null"]
    assert main(["fit", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("done: 192 images seen, ")
    assert lines[-1] == f"next:  resscale predict --run_dir {run_dir} --data.predict IMAGES"
    assert json.loads((run_dir / "summary.json").read_text())["val_top1"] is None


def test_a_new_run_directory_needs_no_config_where_options_say_it_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # It gets as far as the data: the directory is a new one, not a run that holds a config.
    assert main(["fit", "--run_dir", str(tmp_path / "new"), "--data.train", "nothing"]) == 2
    assert "No shards at nothing" in capsys.readouterr().err


def test_a_run_directory_holds_what_the_design_says(trained: tuple[Path, list[str]]) -> None:
    names = {path.name for path in trained[0].iterdir()}
    assert names == {
        "config.yaml", "metrics.csv", "speed.csv", "summary.json", "events.jsonl", "tensorboard",
        "checkpoints", "ranks",
    }  # fmt: skip


def test_the_saved_configuration_is_the_effective_one(trained: tuple[Path, list[str]]) -> None:
    saved = yaml.safe_load((trained[0] / "config.yaml").read_text())
    assert saved["data"]["global_batch_size"] == 64
    assert saved["model"]["optimizer"]["momentum"] == 0.9  # a default, written out
    assert "run_dir" not in saved
    assert "ckpt_path" not in saved


@pytest.mark.parametrize("split", ["val", "test"])
def test_validate_and_test_measure_the_best_weights_on_each_sample_once(
    trained: tuple[Path, list[str]], split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, _ = trained
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    command = "validate" if split == "val" else "test"
    assert main([command, "--run_dir", str(run_dir)]) == 0
    result, weights = capsys.readouterr().out.splitlines()
    summary = json.loads((run_dir / "summary.json").read_text())
    # The digits' val and test shards are the same 360 images.
    assert result.startswith(
        f"{split}: top-1 {summary['val_top1']:.2%}  top-5 {summary['val_top5']:.2%}  loss "
    )
    assert result.endswith("360 of 360 unique")
    assert weights == f"weights: {run_dir}/checkpoints/best.ckpt"
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_validate_takes_the_newest_or_a_named_checkpoint(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, _ = trained
    newest = run_dir / "checkpoints" / "epoch-0001-step-00000003.ckpt"
    for asked in ("auto", str(newest)):
        assert main(["validate", "--run_dir", str(run_dir), "--ckpt_path", asked]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"weights: {newest}"


def test_a_file_of_weights_is_measured_without_a_run(
    config: str, trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, _ = trained
    file = str(run_dir / "checkpoints" / "best.ckpt")
    assert main(["validate", "--config", config, "--weights", file]) == 0
    result, weights = capsys.readouterr().out.splitlines()
    summary = json.loads((run_dir / "summary.json").read_text())
    assert result.startswith(f"val: top-1 {summary['val_top1']:.2%}")
    assert weights == f"weights: {file}"


@pytest.mark.parametrize("other", ["--run_dir", "--ckpt_path"])
def test_a_file_of_weights_beside_a_checkpoint_is_refused(
    config: str, trained: tuple[Path, list[str]], other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, _ = trained
    file = str(run_dir / "checkpoints" / "best.ckpt")
    named = [other, str(run_dir) if other == "--run_dir" else file]
    assert main(["validate", "--config", config, f"--weights={file}", *named]) == 2
    assert f"--weights and {other} both say what validate measures" in capsys.readouterr().err


def test_training_begins_with_the_weights_that_are_named_but_for_the_last_layer(
    config: str,
    trained: tuple[Path, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = str(trained[0] / "checkpoints" / "best.ckpt")
    options = ["--weights", file, "--skip_classifier", "true", "--model.num_classes", "12"]
    # A rate of 0 leaves what was loaded as it is.
    still = ["--model.optimizer.lr", "0", "--run_dir", str(tmp_path / "run")]
    assert main(["fit", "--config", config, *options, *still]) == 0
    # 19 convolutions, 19 BNs of 5 tensors.
    assert f"weights: {19 + 19 * 5} tensors of {file}, without fc.weight, fc.bias" in (
        capsys.readouterr().out.splitlines()
    )
    (newest,) = (tmp_path / "run" / "checkpoints").glob("epoch-*.ckpt")
    before, after = (torch.load(f, weights_only=True)["state_dict"] for f in (file, newest))
    assert torch.equal(before["model.conv1.weight"], after["model.conv1.weight"])
    assert after["model.fc.weight"].shape == (12, 64)


def test_weights_of_another_number_of_classes_name_the_option(
    refuse: Refuse, trained: tuple[Path, list[str]]
) -> None:
    file = str(trained[0] / "checkpoints" / "best.ckpt")
    said = refuse("--weights", file, "--model.num_classes", "12")
    assert "--skip_classifier true loads everything else" in said
    assert "or create it with --model.num_classes 10." in said
    assert "fc.weight" in said


def test_an_untrained_classifier_is_not_measured(
    config: str, trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(trained[0] / "checkpoints" / "best.ckpt")
    options = ["--config", config, "--weights", file, "--skip_classifier", "true"]
    assert main(["validate", *options]) == 2
    assert "leaves the last layer untrained, and validate would measure" in capsys.readouterr().err


def test_skipping_the_classifier_needs_weights(refuse: Refuse) -> None:
    assert refuse("--skip_classifier", "true") == (
        "--skip_classifier=true says how to read --weights: name a file or URL there."
    )


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_predict_writes_a_row_for_each_sample(
    trained: tuple[Path, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ending: str,
) -> None:
    output = tmp_path / f"new/predictions.{ending}"
    arguments = ["--run_dir", str(trained[0]), "--data.predict", "builtin:digits/test"]
    assert main(["predict", *arguments, "--output", str(output)]) == 0
    assert capsys.readouterr().out == f"360 predictions in {output}\n"
    header = 1 if ending == "csv" else 0
    assert len(output.read_text().splitlines()) == 360 + header


def test_print_config_shows_what_results_and_trains_nothing(
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", config, "--data.flip", "false", "--print_config"])
    assert ended.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["data"]["flip"] is False
    assert shown["data"]["global_batch_size"] == 64
    assert list(tmp_path.iterdir()) == []


def test_later_configs_and_overrides_win(
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    later = tmp_path / "later.yaml"
    later.write_text("data: {global_batch_size: 32, pad: 2}\n")
    with pytest.raises(SystemExit):
        main(["fit", "--config", config, "--config", str(later), "--data.pad=3", "--print_config"])
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["data"]["global_batch_size"], shown["data"]["pad"]) == (32, 3)


def test_a_folder_that_does_not_exist_holds_no_shards(refuse: Refuse) -> None:
    assert refuse("--data.train", "nothing").startswith("No shards at nothing: there is no such")


def test_a_fault_that_a_rank_finds_behind_rank_0s_checks_is_told_with_its_name(
    config: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resscale.cli_train.end_with_launcher", lambda: None)
    # As rank 0 starts the others of its machine: on this one the data are not there.
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RESSCALE_RUN_DIR", str(tmp_path / "run"))
    options = ["fit", "--config", config, "--data.train", "nothing", "--trainer.devices", "2"]
    assert main(options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"resscale: rank 1 on {socket.gethostname()}: No shards at nothing")
    # Under torchrun rank 0 looks at the same time, and tells what it finds.
    run_dir = f"--run_dir={tmp_path / 'run'}"
    for name, value in variables_of(1, world_size=2, port=1, arguments=[run_dir]).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert capsys.readouterr().err == ""


def test_an_empty_folder_holds_no_shards(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refuse("--data.train", "empty").startswith("No shards at empty: it holds no .tar file")


def test_shards_without_a_manifest_are_looked_through(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESSCALE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.tar").touch()
    assert main(["fit", "--config", config, "--data.train", str(tmp_path / "foreign")]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "/foreign have no manifest.json: " in first
    assert "foreign/a.tar is truncated or not an uncompressed tar (empty file;" in second


def test_a_truncated_shard_is_found_before_training(refuse: Refuse, tmp_path: Path) -> None:
    shutil.copytree(resolve("builtin:digits/train"), tmp_path / "torn")
    shard = next((tmp_path / "torn").glob("*.tar"))
    size = shard.stat().st_size
    os.truncate(shard, size - 1000)
    said = refuse("--data.train", "torn")
    assert f"has {size - 1000} bytes, its manifest says {size}: truncated." in said
    assert not (tmp_path / "runs").exists()


def test_labels_outside_num_classes_name_the_option_that_fits(refuse: Refuse) -> None:
    said = refuse("--model.num_classes", "9")
    assert "samples have labels from 9 to 9, the model has num_classes=9" in said
    assert said.endswith("Set --model.num_classes 10.")


def test_a_global_batch_that_the_ranks_do_not_divide_names_its_neighbours(refuse: Refuse) -> None:
    said = refuse("--trainer.devices", "2", "--data.global_batch_size", "63")
    assert said == "global_batch_size=63 is not divisible by 2 ranks; choose 62 or 64."


def test_a_micro_batch_that_does_not_divide_names_its_neighbours(refuse: Refuse) -> None:
    said = refuse("--data.micro_batch_size", "48")
    assert said == (
        "micro_batch_size=48 does not divide a rank's share of 64 (global_batch_size=64 / 1 "
        "ranks); choose 32 or 64."
    )


def test_images_too_small_for_the_strides_are_found_before_anything_is_written(
    refuse: Refuse, tmp_path: Path
) -> None:
    assert refuse("--model.model", "resnet18", "--run_dir", str(tmp_path / "run")).startswith(
        "An input of 8x8 pixels is too small for strides of 32 in all: use 17x17 or more"
    )
    assert not (tmp_path / "run").exists()


def test_an_unknown_network_suggests_the_nearest(refuse: Refuse) -> None:
    said = refuse("--model.model", "resnet20_cifra")
    assert said.startswith("Model 'resnet20_cifra' must be one of")
    assert said.endswith("Did you mean 'resnet20_cifar'?")


def test_a_split_that_is_not_named_says_the_option(refuse: Refuse) -> None:
    assert refuse("--data.train", "null") == (
        "data.train is not set: name a folder of shards with --data.train FOLDER."
    )


def test_a_used_run_directory_is_refused_without_auto(
    refuse: Refuse, trained: tuple[Path, list[str]]
) -> None:
    said = refuse("--run_dir", str(trained[0]))
    assert said == (
        f"{trained[0]} holds a run already; add --ckpt_path auto to go on with it, or choose "
        f"another --run_dir."
    )


class GivesUp(Callback):
    """What the second Ctrl-C raises, in the middle of an epoch."""

    def on_train_batch_start(self, *args: Any) -> None:
        raise KeyboardInterrupt


def test_giving_up_at_once_is_130_and_one_sentence(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    run_dir = tmp_path / "run"
    callback = f"{GivesUp.__module__}.{GivesUp.__qualname__}"
    code = main(
        ["fit", "--config", config, "--run_dir", str(run_dir), "--trainer.callbacks", callback]
    )
    signal.signal(signal.SIGINT, handler)  # Lightning ignores it from here on
    assert code == 130
    assert capsys.readouterr().err == f"given up; {run_dir} holds no checkpoint yet.\n"


def test_several_nodes_without_a_launcher_are_refused(refuse: Refuse) -> None:
    assert refuse("--trainer.num_nodes", "2").startswith("trainer.num_nodes=2 needs a launcher")


def test_a_checkpoint_that_does_not_exist(refuse: Refuse) -> None:
    assert refuse("--ckpt_path", "no.ckpt") == "--ckpt_path no.ckpt: there is no such file."


def test_an_unknown_strategy_of_the_trainer_is_bad_input(refuse: Refuse) -> None:
    said = refuse("--trainer.strategy", "dpp")
    assert said.startswith("trainer.strategy=dpp is not one of auto, ddp, ")
    assert said.endswith("Did you mean 'ddp'?")


def test_validate_needs_weights(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--config", config]) == 2
    assert capsys.readouterr().err == (
        "resscale: validate needs weights: name a checkpoint with --ckpt_path FILE, a run with "
        "--run_dir DIR, or a file of weights with --weights FILE.\n"
    )


@pytest.mark.parametrize("asked", [[], ["--ckpt_path", "auto"], ["--ckpt_path", "best"]])
def test_a_run_without_a_whole_checkpoint_cannot_be_measured(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str]
) -> None:
    run_dir = str(tmp_path / "empty")
    assert main(["validate", "--config", config, "--run_dir", run_dir, *asked]) == 2
    assert "holds no whole checkpoint; correct --run_dir" in capsys.readouterr().err


def test_a_directory_that_is_no_run_is_refused_where_it_must_name_the_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in (["--run_dir", str(tmp_path)], [f"--run_dir={tmp_path}"]):
        assert main(["validate", *form]) == 2
        assert f"{tmp_path} holds no config.yaml" in capsys.readouterr().err


def test_predict_needs_something_to_predict(
    trained: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--run_dir", str(trained[0])]) == 2
    assert "data.predict is not set" in capsys.readouterr().err
    arguments = ["predict", "--run_dir", str(trained[0]), "--data.predict", str(tmp_path)]
    assert main(arguments) == 2
    assert "holds neither shards with a manifest nor images" in capsys.readouterr().err


def test_predict_refuses_a_format_that_it_does_not_write(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data.predict", "builtin:digits/test", "--output", "a.txt"]
    assert main(["predict", "--run_dir", str(trained[0]), *arguments]) == 2
    said = capsys.readouterr().err
    assert said == "resscale: --output a.txt: the ending says the format, one of .csv, .jsonl.\n"


def test_a_fault_that_every_rank_finds_is_told_by_the_first(
    config: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # torchrun starts all at once: nothing tells a rank that the first has checked the data.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", config, "--data.train", "nothing"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == ""
