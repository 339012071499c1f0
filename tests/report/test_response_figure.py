"""The figure of layer responses: what is read, averaged and drawn."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from resscale.errors import DataFormatError
from resscale.report import group_runs, load_run
from resscale.report.response_figure import draw_responses, mean_responses, read_responses

MakeRun = Callable[..., Path]


def respond(run: Path, *stds: float, global_step: int | None = None) -> Path:
    """Write what a run has measured."""
    layers = [{"name": f"conv{i}", "std": std} for i, std in enumerate(stds)]
    facts = {"num_images": 4, "global_step": global_step, "layers": layers}
    (run / "layer_responses.json").write_text(json.dumps(facts))
    return run


def test_what_a_run_has_measured_is_read_in_the_nets_order(make_run: MakeRun) -> None:
    assert read_responses(load_run(respond(make_run(), 0.5, 2.0, 1.0))) == [0.5, 2.0, 1.0]


# At its end the run was at step 30; while it was under way, any step is the newest it had.
@pytest.mark.parametrize(
    ("status", "step", "found"),
    [("done", 30, [1.0]), ("done", 20, []), ("preempted", 20, [1.0])],
)
def test_responses_from_before_the_runs_end_are_not_shown_for_a_finished_run(
    make_run: MakeRun, status: str, step: int, found: list[float]
) -> None:
    run = make_run(summary={"status": status, "global_step": 30})
    assert read_responses(load_run(respond(run, 1.0, global_step=step))) == found


@pytest.mark.parametrize("text", [None, "{", "[]", '{"layers": [{"name": "conv1"}]}'])
def test_a_run_without_a_whole_file_has_none(make_run: MakeRun, text: str | None) -> None:
    run = make_run()
    if text is not None:
        (run / "layer_responses.json").write_text(text)
    assert read_responses(load_run(run)) == []


def test_a_group_shows_the_mean_over_the_runs_that_have_measured(make_run: MakeRun) -> None:
    runs = [respond(make_run("a"), 1.0, 2.0), respond(make_run("b", seed=1), 3.0, 5.0)]
    runs.append(make_run("c", seed=2))
    (group,) = group_runs([load_run(run) for run in runs])
    assert mean_responses(group) == [(1 + 3) / 2, (2 + 5) / 2]


def test_runs_of_one_net_with_different_layers_are_refused(make_run: MakeRun) -> None:
    runs = [respond(make_run("a"), 1.0, 2.0), respond(make_run("b", seed=1), 3.0)]
    (group,) = group_runs([load_run(run) for run in runs])
    message = r"b/layer_responses\.json has 1 layers and .*a/layer_responses\.json 2, .* anew: --"
    with pytest.raises(DataFormatError, match=message):
        mean_responses(group)


def test_there_is_no_picture_where_nothing_was_measured(make_run: MakeRun) -> None:
    assert draw_responses(group_runs([load_run(make_run())])) is None


def test_plain_nets_are_dashed_and_the_lower_panel_is_sorted(make_run: MakeRun) -> None:
    plain = respond(make_run("p", options={"model.model": "plain20_cifar"}), 1.0, 3.0, 2.0)
    residual = respond(make_run("r"), 0.1, 0.2)
    unmeasured = make_run("u", options={"model.model": "resnet32_cifar"})
    groups = group_runs([load_run(run) for run in (plain, unmeasured, residual)])
    picture = draw_responses(groups)
    assert picture is not None
    upper, lower = picture.figure.axes
    assert [list(line.get_ydata()) for line in upper.lines] == [[1.0, 3.0, 2.0], [0.1, 0.2]]
    assert [list(line.get_ydata()) for line in lower.lines] == [[3.0, 2.0, 1.0], [0.2, 0.1]]
    assert [line.get_linestyle() for line in upper.lines] == ["--", "-"]
    assert [line.get_label() for line in lower.lines] == ["plain20_cifar", "resnet20_cifar"]


def test_a_net_made_plain_by_its_option_is_dashed_too(make_run: MakeRun) -> None:
    run = respond(make_run("p", options={"model.model_options.shortcut": "none"}), 1.0)
    picture = draw_responses(group_runs([load_run(run)]))
    assert picture is not None
    assert picture.figure.axes[0].lines[0].get_linestyle() == "--"
