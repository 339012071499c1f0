from dataclasses import FrozenInstanceError, replace

import pytest

from resscale.errors import UserInputError
from resscale.models import ResNetOptions

# option -> (a near miss, the valid values as the message lists them, what was meant)
CHOICES = {
    "shortcut": ("a", "'A', 'B', 'C', 'none'", None),
    "stride_on": ("3x", "'1x1', '3x3'", "3x3"),
    "stem": ("imagnet", "'imagenet', 'cifar', 'deep'", "imagenet"),
    "stem_pool": ("maxx", "'max', 'conv'", "max"),
    "downsample": ("avgg", "'conv', 'avg'", "avg"),
    "norm": ("Batch", "'batch', 'none'", "batch"),
}


@pytest.mark.parametrize("option", CHOICES)
def test_a_choice_that_is_none_of_the_valid_ones_is_refused_with_the_nearest(option):
    wrong, valid, meant = CHOICES[option]
    hint = f" Did you mean '{meant}'?" if meant else ""

    with pytest.raises(UserInputError) as refused:
        ResNetOptions(**{option: wrong})

    assert str(refused.value) == f"Option {option}='{wrong}' must be one of {valid}.{hint}"


def test_the_shortcut_none_is_text_and_not_pythons_none():
    with pytest.raises(UserInputError, match=r"shortcut=None must be .* Did you mean 'none'\?$"):
        ResNetOptions(shortcut=None)


@pytest.mark.parametrize("option", ["preact", "blurpool", "zero_init_residual"])
@pytest.mark.parametrize("value", ["yes", 1, None])
def test_a_switch_must_be_a_bool(option, value):
    with pytest.raises(UserInputError, match=rf"^Option {option}={value!r} must be True or False"):
        ResNetOptions(**{option: value})


@pytest.mark.parametrize("option", ["groups", "width_per_group", "stem_width"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "32"])
def test_a_count_must_be_a_whole_number_from_1(option, value):
    message = rf"^Option {option}={value!r} must be a whole number of at least 1\.$"

    with pytest.raises(UserInputError, match=message):
        ResNetOptions(**{option: value})


def test_only_the_stem_width_may_be_left_open():
    assert ResNetOptions(stem_width=None).stem_width is None
    with pytest.raises(UserInputError, match="groups=None must be a whole number"):
        ResNetOptions(groups=None)


@pytest.mark.parametrize("value", [-1, 16.0, False, None])
def test_the_reduction_of_se_is_a_whole_number_or_0(value):
    with pytest.raises(
        UserInputError,
        match=rf"^Option se={value!r} must be a whole number: the reduction, such as 16, or 0\.$",
    ):
        ResNetOptions(se=value)


@pytest.mark.parametrize("option", ["drop_path", "dropout", "block_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan"), "0.1", True, None])
def test_a_rate_is_from_0_up_to_below_1(option, value):
    with pytest.raises(UserInputError, match=rf"^Option {option}=.* from 0 up to below 1\.$"):
        ResNetOptions(**{option: value})


@pytest.mark.parametrize("option", ["drop_path", "dropout", "block_dropout"])
def test_a_rate_may_be_a_whole_zero_as_yaml_reads_it(option):
    assert getattr(ResNetOptions(**{option: 0}), option) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shortcut": "none", "zero_init_residual": True},
            "Option zero_init_residual=True needs shortcuts, and shortcut='none' has none: use "
            "zero_init_residual=False or another shortcut.",
        ),
        (
            {"shortcut": "none", "drop_path": 0.1},
            "Option drop_path needs shortcuts, and shortcut='none' has none: use drop_path=0 or "
            "another shortcut.",
        ),
        (
            {"shortcut": "A", "downsample": "avg"},
            "Option downsample='avg' pools before a projection, and shortcut='A' has none: use "
            "shortcut='B' or downsample='conv'.",
        ),
        (
            {"shortcut": "none", "downsample": "avg"},
            "Option downsample='avg' pools before a projection, and shortcut='none' has none: use "
            "shortcut='B' or downsample='conv'.",
        ),
        (
            {"stem": "cifar", "stem_pool": "conv"},
            "Option stem_pool='conv' replaces a max-pool, and stem='cifar' has none: use "
            "stem_pool='max', or stem='deep'.",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused_with_a_remedy(options, message):
    with pytest.raises(UserInputError) as refused:
        ResNetOptions(**options)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"shortcut": "none", "zero_init_residual": True}, {"zero_init_residual": False}),
        ({"shortcut": "none", "drop_path": 0.1}, {"shortcut": "A"}),
        ({"shortcut": "A", "downsample": "avg"}, {"shortcut": "B"}),
        ({"shortcut": "none", "downsample": "avg"}, {"downsample": "conv"}),
        ({"stem": "cifar", "stem_pool": "conv"}, {"stem_pool": "max"}),
        ({"stem": "cifar", "stem_pool": "conv"}, {"stem": "deep"}),
    ],
)
def test_the_remedy_of_a_contradiction_works(options, remedy):
    ResNetOptions(**options | remedy)


def test_options_cannot_change_behind_the_checks():
    options = ResNetOptions()

    with pytest.raises(FrozenInstanceError):
        options.stem = "cifar"
    with pytest.raises(UserInputError, match="stem='none' must be one of"):
        replace(options, stem="none")
