"""Groups: which runs belong together, their names, their bands, and what sets them apart."""

from collections.abc import Callable

import pytest

from resscale.errors import UserInputError
from resscale.report.groups import Difference, differences, group_runs
from resscale.report.runs import Run

Made = Callable[..., Run]


def names(*runs: Run) -> list[str]:
    """The names of the groups of these runs."""
    return [group.name for group in group_runs(runs)]


def test_runs_that_differ_in_the_seed_alone_are_one_group(made: Made) -> None:
    (group,) = group_runs([made("a", seed=0), made("b", seed=1)])
    assert group.name == "resnet20_cifar"
    assert [run.seed for run in group.runs] == ["0", "1"]


@pytest.mark.parametrize("key", ["run_dir", "ckpt_path", "trainer.default_root_dir"])
def test_where_a_run_lies_does_not_set_it_apart(made: Made, key: str) -> None:
    assert len(group_runs([made("a", options={key: "a"}), made("b", options={key: "b"})])) == 1


def test_an_option_that_an_older_run_lacks_is_the_same_as_null(made: Made) -> None:
    assert len(group_runs([made("a"), made("b", options={"data.partitions": None})])) == 1


def test_the_band_reaches_from_the_least_to_the_greatest(made: Made) -> None:
    (group,) = group_runs([made(f"s{seed}", seed=seed) for seed in (0, 1, 5)])
    band = group.spread("test_error_pct")
    assert band.epochs == [1, 2, 3]
    # Seeds 0, 1, 5 end at 100 - (50 + 2 + seed) = 48, 47, 43.
    assert (band.low[-1], band.mean[-1], band.high[-1]) == pytest.approx((43, 46, 48))


def test_the_mean_is_over_the_runs_that_have_got_so_far(made: Made) -> None:
    short = made("a", epochs=1, options={"trainer.max_epochs": 3})
    long = made("b", epochs=3, seed=2)
    band = group_runs([short, long])[0].spread("test_error_pct")
    assert band.mean == pytest.approx([(50 + 48) / 2, 47, 46])


def test_groups_are_named_by_the_network_where_that_tells_them_apart(made: Made) -> None:
    plain = {"model.model": "plain20_cifar", "model.optimizer.lr": 0.05}
    assert names(made("a"), made("b", options=plain)) == ["resnet20_cifar", "plain20_cifar"]


def test_groups_are_named_by_the_option_that_differs(made: Made) -> None:
    runs = [made(x, options={"model.model_options.shortcut": x}) for x in "AB"]
    assert names(*runs) == ["shortcut=A", "shortcut=B"]
    assert names(made("none"), *runs) == ["shortcut=default", "shortcut=A", "shortcut=B"]


def test_a_second_key_is_named_where_the_first_leaves_two_alike(made: Made) -> None:
    plain = {"model.model": "plain20_cifar"}
    slow = {"model.optimizer.lr": 0.05}
    assert names(made("a"), made("b", options=plain), made("c", options=slow)) == [
        "resnet20_cifar, lr=0.1",
        "plain20_cifar, lr=0.1",
        "resnet20_cifar, lr=0.05",
    ]


def test_a_key_that_later_ones_make_needless_is_left_out(made: Made) -> None:
    settings = [
        ("resnet", "five", 30),
        ("plain", "five", 30),
        ("resnet", "ten", 20),
        ("resnet", "ten", 10),
    ]
    runs = [
        made(str(n), options={"model.model": net, "data.train": data, "trainer.max_epochs": epochs})
        for n, (net, data, epochs) in enumerate(settings)
    ]
    assert names(*runs) == [
        "resnet, max_epochs=30",
        "plain, max_epochs=30",
        "resnet, max_epochs=20",
        "resnet, max_epochs=10",
    ]


def test_keys_with_the_same_last_part_are_named_by_two(made: Made) -> None:
    def options(first: int, second: int) -> dict[str, int]:
        return {"data.a.size": first, "data.b.size": second}

    runs = [made(f"r{a}{b}", options=options(a, b)) for a, b in ((1, 1), (1, 2), (2, 1))]
    assert names(*runs) == ["a.size=1, b.size=1", "a.size=1, b.size=2", "a.size=2, b.size=1"]


def test_of_paths_only_what_differs_is_named(made: Made) -> None:
    paths = ("/very/long/fashion/train", "/very/long/digits/train")
    runs = [made(str(n), options={"data.train": path}) for n, path in enumerate(paths)]
    assert names(*runs) == ["train=fashion", "train=digits"]


def test_paths_with_the_same_last_part_are_told_apart_by_more(made: Made) -> None:
    runs = [made(x, options={"data.train": f"/{x}/fashion"}) for x in ("one", "two")]
    assert names(*runs) == ["train=one", "train=two"]
    paths = ("/one/fashion", "/two/fashion", "/two/digits")
    runs = [made(str(n), options={"data.train": path}) for n, path in enumerate(paths)]
    assert names(*runs) == ["train=one/fashion", "train=two/fashion", "train=two/digits"]


def test_a_path_that_ends_another_is_told_apart_from_it(made: Made) -> None:
    paths = ("fashion/train", "old/fashion/train")
    runs = [made(str(n), options={"data.train": path}) for n, path in enumerate(paths)]
    assert names(*runs) == ["train=fashion", "train=old/fashion"]


def test_a_long_value_is_shortened_to_both_its_ends(made: Made) -> None:
    runs = [made(x, options={"model.model": x + "m" * 50 + x}) for x in "ab"]
    assert names(*runs) == [f"{x}{'m' * 15}…{'m' * 14}{x}" for x in "ab"]


def test_groups_whose_names_would_be_equal_have_their_directorys_too(made: Made) -> None:
    runs = [made(x, options={"model.model": "m" * 20 + x + "m" * 20}) for x in "ab"]
    name = f"{'m' * 16}…{'m' * 15}"
    assert names(*runs) == [f"{name} (a)", f"{name} (b)"]
    assert names(made("c", label="resnet20_cifar"), made("d")) == [
        "resnet20_cifar (c)",
        "resnet20_cifar (d)",
    ]


def test_runs_without_a_configuration_stand_alone(made: Made) -> None:
    bare = [made("a"), made("b")]
    for run in bare:
        run.config.clear()
    assert names(*bare) == ["a", "b"]


def test_a_label_names_its_group(made: Made) -> None:
    other_place = {"data.train": "elsewhere/train"}
    runs = [made("a", label="mine"), made("b", label="mine", options=other_place), made("c")]
    assert names(*runs) == ["mine", "resnet20_cifar"]


def test_a_label_for_different_models_is_refused(made: Made) -> None:
    runs = [made("a", label="x"), made("b", label="x", options={"model.optimizer.lr": 0.5})]
    message = r"the label 'x' stands for .*a and .*b, which differ in model.optimizer.lr \(0.1 and"
    with pytest.raises(UserInputError, match=message):
        group_runs(runs)


def test_only_keys_whose_values_differ_are_told(made: Made) -> None:
    options = {"model.model": "plain20_cifar", "trainer.max_epochs": None, "data.flip": True}
    groups = group_runs([made("a", seed=1), made("b", seed=2, options=options)])
    assert differences(groups) == [
        Difference("model.model", ("resnet20_cifar", "plain20_cifar")),
        Difference("data.flip", ("not set", "true")),
        Difference("trainer.max_epochs", ("3", "null")),
    ]


def test_lists_are_told_as_they_stand_in_the_configuration(made: Made) -> None:
    options = {"model.schedule.step_at_epochs": [10, 15.5]}
    groups = group_runs([made("a"), made("b", options=options)])
    (difference,) = differences(groups)
    assert difference.values == ("not set", "[10, 15.5]")


def test_a_signed_address_is_told_without_its_signature(made: Made) -> None:
    signed = {"data.train": "https://user:pw@host/train?X-Amz-Signature=secret"}
    groups = group_runs([made("a"), made("b", options=signed)])
    (difference,) = differences(groups)
    assert difference.values == ("shards/train", "https://host/train")
    assert "secret" not in "".join(group.name for group in groups)


def test_runs_of_one_label_that_differ_show_both_values(made: Made) -> None:
    elsewhere = {"data.train": "elsewhere/train"}
    runs = [made("a", label="x"), made("b", label="x", options=elsewhere), made("c", label="y")]
    (difference,) = differences(group_runs(runs))
    assert difference.values == ("shards/train / elsewhere/train", "shards/train")
