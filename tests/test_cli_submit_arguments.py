"""The arguments of `resscale submit`: its own, those of `fit`, and the cluster's."""

import re
import shlex
from pathlib import Path

import pytest

from resscale.cli_submit_arguments import site_of, split_arguments
from resscale.cluster.site import Site
from resscale.errors import UserInputError


def test_what_is_not_submits_own_is_fits() -> None:
    parsed = split_arguments(
        ["--nodes", "4", "--config", "c.yaml", "--gpus-per-node=8", "--data.train", "a", "--watch"]
    )
    assert not isinstance(parsed, int)
    options, rest = parsed
    assert (options.nodes, options.gpus_per_node, options.watch) == (4, 8, True)
    assert rest == ["--config", "c.yaml", "--data.train", "a"]


def test_dashes_and_underscores_are_the_same() -> None:
    for words in (["--gpus-per-node", "8", "--dry-run"], ["--gpus_per_node=8", "--dry_run"]):
        parsed = split_arguments(words)
        assert not isinstance(parsed, int)
        assert (parsed[0].gpus_per_node, parsed[0].dry_run, parsed[1]) == (8, True, [])


def test_the_options_of_fit_keep_their_underscores() -> None:
    parsed = split_arguments(["--run_dir", "a", "--data.micro_batch_size=8"])
    assert not isinstance(parsed, int)
    assert parsed[1] == ["--run_dir", "a", "--data.micro_batch_size=8"]


@pytest.mark.parametrize(
    ("words", "follows"),
    [
        (["--trainer.devices", "8"], "--gpus-per-node"),
        (["--trainer.devices=8"], "--gpus-per-node"),
        (["--trainer.num_nodes", "2"], "--nodes"),
    ],
)
def test_the_number_of_ranks_is_not_said_twice(words: list[str], follows: str) -> None:
    with pytest.raises(UserInputError, match=f"is not given: it follows from {follows}"):
        split_arguments(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo.yaml"], "'demo.yaml' is no option; .* such as --config demo.yaml"),
        (["--nodes", "0"], "argument --nodes: 0: must be above 0"),
        (["--nodes", "many"], "invalid int value: 'many'"),
    ],
)
def test_a_wrong_word_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        split_arguments(words)


def test_options_come_before_the_clusters_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("partition: low\naccount: a1\nmodules: [cuda/11]\n")
    words = ["--cluster", str(file), "--partition", "high", "--modules", "cuda/12,gcc"]
    parsed = split_arguments([*words, "--exclusive", "--cpus-per-task", "6"])
    assert not isinstance(parsed, int)
    assert site_of(parsed[0]) == Site(
        partition="high",
        account="a1",
        modules=("cuda/12", "gcc"),
        exclusive=True,
        cpus_per_task=6,
    )


def test_a_file_alone_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("exclusive: true\n")
    parsed = split_arguments(["--cluster", str(file)])
    assert not isinstance(parsed, int)
    assert site_of(parsed[0]) == Site(exclusive=True)


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert split_arguments(["--help"]) == 0
    assert "resscale submit --nodes 4 --gpus-per-node 8" in capsys.readouterr().out


def test_the_commands_that_are_shown_parse() -> None:
    root = Path(__file__).resolve().parents[1]
    page = (root / "slurm" / "README.md").read_text()
    found = re.findall(r"^(?:eval \"\$\()?resscale submit (.*?)(?:\)\"|$)", _joined(page), re.M)
    assert len(found) >= 5
    for line in found:
        parsed = split_arguments(shlex.split(line))
        assert not isinstance(parsed, int)
        for file in re.findall(r"configs/[\w/]+\.yaml", line):
            assert (root / file).is_file()


def _joined(text: str) -> str:
    """A text with a shell's continued lines in one."""
    return re.sub(r"\\\n\s*", "", text)
