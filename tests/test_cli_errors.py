"""The option parser's errors as a user reads them: one sentence, with the nearest valid name.

All go through the real parser, since its texts are what is being translated.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from resscale.cli import main
from resscale.cli_errors import explain_parser_error, explain_refusal

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"
)
Refuse = Callable[..., str]


@pytest.fixture
def refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Refuse:
    """A function that runs `resscale fit`, wants exit code 2 and one message, and returns it."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        assert main(["fit", *arguments]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert not (tmp_path / "runs").exists()
        return said.err.removeprefix("resscale: ").removesuffix("\n")

    return run


def config(folder: Path, text: str) -> str:
    """Write a configuration and return its path."""
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


def test_a_config_that_does_not_exist_names_the_nearest_file_beside_it(
    refuse: Refuse, tmp_path: Path
) -> None:
    (tmp_path / "demo.yaml").touch()
    (tmp_path / "other.yaml").touch()
    said = refuse("--config", "dmo.yaml")
    assert said == f"there is no file {tmp_path}/dmo.yaml. Did you mean '{tmp_path}/demo.yaml'?"


def test_a_config_in_a_folder_that_does_not_exist(refuse: Refuse, tmp_path: Path) -> None:
    assert refuse("--config", "no/demo.yaml") == f"there is no file {tmp_path}/no/demo.yaml."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: {globl_batch_size: 3}", "'data.globl_batch_size' is not an option. Did you mean "
         "'data.global_batch_size'?"),
        ("modle: {model: resnet18}", "'modle.model' is not an option. Did you mean "
         "'model.model'?"),
        ("model: {optimizer: {lrr: 1}}", "'model.optimizer.lrr' is not an option. Did you mean "
         "'model.optimizer.lr'?"),
        ("trainer: {max_epoch: 1}", "'trainer.max_epoch' is not an option. Did you mean "
         "'trainer.max_epochs'?"),
    ],
)  # fmt: skip
def test_an_unknown_key_in_the_yaml_suggests_the_nearest(
    refuse: Refuse, tmp_path: Path, text: str, said: str
) -> None:
    assert refuse("--config", config(tmp_path, text)) == said


@pytest.mark.parametrize(
    ("option", "nearest"),
    [
        ("data.globl_batch_size", "data.global_batch_size"),
        ("global_batch_size", "data.global_batch_size"),
        ("modle.num_classes", "model.num_classes"),
        ("max_epochs", "trainer.max_epochs"),
        ("lr", "model.optimizer.lr"),  # far from the whole name, equal to its last part
        ("runs_dirr", "runs_dir"),
    ],
)
@pytest.mark.parametrize("form", ["--{}=3", "--{} 3"])
def test_an_unknown_option_suggests_the_nearest(
    refuse: Refuse, option: str, nearest: str, form: str
) -> None:
    said = refuse(*form.format(option).split())
    assert said == f"{option!r} is not an option. Did you mean {nearest!r}?"


def test_an_option_like_no_other_points_to_the_list(refuse: Refuse) -> None:
    assert refuse("--zzz", "3") == "'zzz' is not an option. See --help_all for all options."


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("data.global_batch_size=many", "must be a whole number."),
        ("data.global_batch_size=1.5", "must be a whole number."),
        ("data.micro_batch_size=many", "must be a whole number or null."),
        ("model.optimizer.lr=fast", "must be a number."),
        ("data.flip=maybe", "must be true or false."),
        ("trainer.max_epochs=x", "must be a whole number or null."),
    ],
)
def test_a_value_of_the_wrong_type_says_what_it_must_be(
    refuse: Refuse, option: str, said: str
) -> None:
    assert refuse(f"--{option}") == f"{option} is not valid; it {said}"


def test_a_value_of_the_wrong_type_in_the_yaml_reads_the_same(
    refuse: Refuse, tmp_path: Path
) -> None:
    said = refuse("--config", config(tmp_path, "data: {global_batch_size: many}"))
    assert said == "data.global_batch_size=many is not valid; it must be a whole number."


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("data.shuffle=windw", "full, window, none. Did you mean 'window'?"),
        ("data.train_crop=padd", "random_resized, pad, center. Did you mean 'pad'?"),
        ("model.optimizer.name=sgdd", "sgd, lars, lamb, adamw. Did you mean 'sgd'?"),
        ("model.schedule.name=triangle", "cosine, step, linear, polynomial, constant."),
        ("data.channels=2", "1, 3."),
    ],
)
def test_a_choice_that_is_none_lists_them_and_the_nearest(
    refuse: Refuse, option: str, said: str
) -> None:
    assert refuse(f"--{option}") == f"{option} is not one of {said}"


def test_broken_yaml_says_where(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse("--config", config(tmp_path, "model: [a\n  b: {"))
    assert said.startswith("the configuration is not valid YAML: while parsing a flow sequence")
    assert "line 1, column 8" in said


def test_what_is_not_understood_is_still_one_line() -> None:
    assert explain_parser_error("a new\n  kind of\n\nerror", []) == "a new kind of error"


def test_an_option_of_a_class_is_named_whole(refuse: Refuse) -> None:
    said = refuse(
        "--trainer.strategy.class_path=resscale.training.zero.ZeRO", "--trainer.strategy.stage=4"
    )
    assert said == "trainer.strategy.stage=4 is not one of 1, 2, 3."


@pytest.mark.parametrize("form", ["option", "yaml"])
def test_a_value_of_the_wrong_type_in_a_class_is_told_as_any_other(
    refuse: Refuse, tmp_path: Path, form: str
) -> None:
    name = "resscale.training.strategy.DistributedDataParallel"
    options = [
        f"--trainer.strategy.class_path={name}",
        "--trainer.strategy.gradient_compression=int8",
    ]
    if form == "yaml":
        init = f"{{class_path: {name}, init_args: {{gradient_compression: int8}}}}"
        options = ["--config", config(tmp_path, f"trainer: {{strategy: {init}}}")]
    assert refuse(*options) == (
        "trainer.strategy.gradient_compression=int8 is not valid; it must be one of bf16, fp16."
    )


def test_a_precision_that_neither_we_nor_lightning_know_lists_ours(refuse: Refuse) -> None:
    assert refuse("--trainer.precision=fp8") == (
        "trainer.precision=fp8 is not supported; choose one of 32-true, bf16-mixed, 16-mixed."
    )


def test_what_a_class_itself_refuses_is_told_apart_from_other_errors() -> None:
    report = (
        "Does not validate against any of the Union subtypes\nSubtypes: [str, Strategy]\nErrors:\n"
        "  - Expected a <class 'str'>\n  - two things\n    contradict.\nGiven value type: x\nGiven"
    )
    assert explain_refusal(report) == "two things contradict."
    assert explain_refusal("math domain error") is None
