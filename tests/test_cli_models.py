"""`resscale models`: the table of named nets."""

import pytest

from resscale.cli import main
from resscale.cli_models import run_models
from resscale.errors import UserInputError


def test_a_row_holds_name_parameters_pixels_gmacs_block_and_source(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "resnet5[0]"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "parameters", "pixels", "GMACs", "block", "source"]
    # torchvision's figures for resnet50: 25,557,032 parameters, 4.09 GMACs at 224.
    assert row.split()[:5] == ["resnet50", "25,557,032", "224", "4.09", "bottleneck"]
    assert "He et al. 2015, table 1" in row


def test_cifar_nets_are_counted_with_ten_classes_at_32_pixels(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "resnet20_c*"]) == 0
    # 0.27 M in table 6; 40.55 M multiply-adds, worked out in tests/models/test_variants.py.
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == [
        "resnet20_cifar", "269,722", "32", "0.041"
    ]  # fmt: skip


def test_every_name_that_matches_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "plain*"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    cifar = [f"plain{depth}_cifar" for depth in (20, 32, 44, 56, 110)]
    assert names == sorted([*cifar, "plain18", "plain34"])


def test_a_cifar_net_of_another_depth_has_a_row_and_a_depth_against_the_rule_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "resnet26_cifar"]) == 0
    # Each further block per stage adds 2 convolutions of 9 w^2 weights and 2 BNs of 2 w to it:
    # 4,672 + 18,560 + 73,984 for w = 16, 32, 64, on top of resnet20's 269,722.
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:3] == ["resnet26_cifar", "366,938", "32"]
    with pytest.raises(UserInputError, match=r"have 6n \+ 2: use 'resnet20_cifar'\.$"):
        run_models(["resnet21_cifar"])


def test_a_pattern_without_a_match_suggests_a_name() -> None:
    for pattern, name in (("resnet-50", "resnet50"), ("wrn*_9_cifar", "wrn40_4_cifar")):
        with pytest.raises(UserInputError, match=rf"No model matches .* Did you mean '{name}'\?$"):
            run_models([pattern])


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_models(["--help"]) == 0
    assert "resscale models 'resnet*_cifar'" in capsys.readouterr().out


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(UserInputError, match=r"unrecognized arguments: --all"):
        run_models(["--all"])
