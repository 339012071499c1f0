"""The page: complete in itself, escaped, honest about what is not done or not recorded."""

import base64
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from html_checker import checked, rows_of
from PIL import Image

from resscale.errors import UserInputError
from resscale.report.curves import draw
from resscale.report.groups import group_runs
from resscale.report.page import check_page, render, write_report
from resscale.report.runs import Run, load_run
from resscale.training.rundir import RunDir

Made = Callable[..., Run]


def page_of(*runs: Run) -> str:
    groups = group_runs(runs)
    return render(groups, draw(groups), "2026-11-23 12:00")


def test_page_pictures_and_the_pages_of_runs_are_written_side_by_side(
    made: Made, tmp_path: Path
) -> None:
    runs = [made("a"), made("c d", options={"model.model": "plain20_cifar"})]
    written = write_report(group_runs(runs), tmp_path / "x.html", "today")
    pictures = ["x-error.png", "x-loss.png", "x-throughput.png"]
    pages = ["x-a.html", "x-c d.html"]
    assert [path.relative_to(tmp_path).name for path in written] == ["x.html", *pictures, *pages]
    links = re.findall(r'<a href="([^"]+)"', written[0].read_text())
    assert links == ["./x-a.html", "./x-c%20d.html"]
    for path, group in zip(written[4:], ("resnet20_cifar", "plain20_cifar"), strict=True):
        html = path.read_text()
        assert f'<p class="facts">{group}. Drawn today by resscale' in html
        assert re.findall(r'<a href="([^"]+)"', html) == ["./x.html"]
    for path in written[1:4]:
        with Image.open(path) as image:
            assert (image.format, image.width) == ("PNG", 960)


def test_the_page_loads_nothing(made: Made) -> None:
    html = page_of(made("a", summary={"command": "resscale fit --data.train https://x.example/a"}))
    checker = checked(html)
    targets = [
        value
        for _, attributes in checker.tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action")
    ]
    assert len(targets) == 3  # the pictures
    assert all(target and target.startswith("data:image/svg+xml;base64,") for target in targets)
    assert not {tag for tag, _ in checker.tags} & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"@import|url\(", html)
    assert "default-src 'none'" in html  # so a browser would refuse it, too
    assert "https://x.example/a" in checker.text


def test_the_pictures_in_the_page_load_nothing_either(made: Made) -> None:
    for encoded in re.findall(r'base64,([^"]+)"', page_of(made("a"))):
        svg = base64.b64decode(encoded).decode()
        targets = re.findall(r'(?:href|src)="([^"]*)"', svg)
        assert targets
        assert all(target.startswith("#") for target in targets)


def test_the_page_has_language_title_and_alternative_texts(made: Made) -> None:
    plain = {"model.model": "plain20_cifar"}
    html = page_of(made("a"), made("b", options=plain))
    checker = checked(html)
    assert ("html", {"lang": "en"}) in checker.tags
    assert "<title>resnet20_cifar, plain20_cifar</title>" in html
    alternatives = [attributes.get("alt") for tag, attributes in checker.tags if tag == "img"]
    assert alternatives[0] == "Error: resnet20_cifar, plain20_cifar"
    assert all(alternatives)


def test_a_long_list_of_groups_is_counted_in_the_title(made: Made) -> None:
    runs = [made(f"r{n}", options={"model.model": f"resnet20_cifar_{n}"}) for n in range(5)]
    assert "<title>5 groups of runs</title>" in page_of(*runs)


def test_everything_from_a_run_is_escaped(made: Made) -> None:
    evil = '<script>alert("1")</script>&'
    html = page_of(
        made("a", label=evil, options={"model.model": evil, "seed_everything": evil}),
        made(
            "b<i>",
            options={f"data.{evil}": evil},
            summary={"status": evil, "command": evil, "reason": evil, "world_size": evil},
        ),
    )
    checker = checked(html)
    assert "script" not in {tag for tag, _ in checker.tags}
    assert checker.text.count(evil) > 8
    (alternative, *_) = (attributes["alt"] for tag, attributes in checker.tags if tag == "img")
    assert alternative == f"Error: {evil}, resnet20_cifar"


def test_the_results_have_mean_and_deviation(made: Made) -> None:
    runs = [made(f"s{n}", seed=n, summary={"num_macs": 40_813_184}) for n in (0, 1, 2)]
    heads, cells = rows_of(page_of(*runs), "Results")
    assert dict(zip(heads, cells, strict=True)) == {
        "group": "resnet20_cifar",
        "runs (seeds)": "3 (0, 1, 2)",
        "final test error, %": "47.00 ± 1.00",  # of 48, 47, 46
        "best test error, %": "47.00 ± 1.00",
        "final training error, %": "37.00 ± 1.00",  # of 38, 37, 36
        "parameters": "269,434",
        "GMACs": "0.0408",
        "images/s": "100",
        "data wait, %": "25.0",
        "epochs": "3",
        "status": "done",
    }


def test_a_seed_that_was_run_twice_is_named_once(made: Made) -> None:
    html = page_of(made("a", seed=4), made("b", seed=4))
    assert rows_of(html, "Results")[1][1] == "2 (4)"


def test_what_is_not_recorded_is_said(made: Made) -> None:
    heads, cells = rows_of(
        page_of(made("a", epochs=0, summary={"num_parameters": None})), "Results"
    )
    row = dict(zip(heads, cells, strict=True))
    for title in ("final test error, %", "parameters", "GMACs", "images/s", "data wait, %"):
        assert row[title] == "not recorded"


def test_runs_that_are_not_done_are_flagged(made: Made) -> None:
    late = {"status": "preempted", "epoch": 2, "reason": "SIGTERM at step 20"}
    options = {"trainer.max_epochs": 3}
    runs = [made("a"), made("b", seed=1, epochs=2, options=options, summary=late)]
    html = page_of(*runs)
    assert rows_of(html, "Results")[1][-1] == "1 of 2 doneseed 1: preempted at epoch 2 of 3"
    assert rows_of(html, "Runs")[2][3] == "preempted at epoch 2 of 3SIGTERM at step 20"
    assert '<span class="warn">' in html


def test_averaged_weights_have_a_column_only_where_there_are_some(made: Made) -> None:
    run = made("a")
    assert "EMA" not in page_of(run)
    RunDir(run.path).append_metrics({"epoch": 2, "step": 30, "val/top1": 0.5, "val/ema_top1": 0.75})
    heads, cells = rows_of(page_of(load_run(run.path)), "Results")
    assert cells[heads.index("final EMA test error, %")] == "25.00"  # 100 × (1 - 0.75)


def test_the_differences_are_only_those(made: Made) -> None:
    html = page_of(made("a", seed=3), made("b", options={"model.optimizer.lr": 0.5}))
    assert rows_of(html, "Differences") == [
        ["key", "lr=0.1", "lr=0.5"],
        ["model.optimizer.lr", "0.1", "0.5"],
    ]
    assert "Differences" not in page_of(made("c"))


def test_labelled_groups_may_have_the_same_configuration(made: Made) -> None:
    html = page_of(made("a", label="before"), made("b", label="after"))
    assert "The configurations are equal apart from seeds." in html


def test_faults_and_resumes_are_listed(made: Made) -> None:
    run = RunDir(made("a").path)
    assert "None: no damaged samples, no resumes." in page_of(load_run(run.path))
    run.append_event("bad_sample", key="x")
    run.append_event("resumed", step=1200)
    run.append_event("resumed", step=3300)
    text = checked(page_of(load_run(run.path))).text
    assert "a: 1 damaged sample replaced" in text
    assert "a: resumed 2 times, at steps 1,200, 3,300" in text


def test_date_and_commands_are_on_the_page(made: Made) -> None:
    text = checked(page_of(made("a"), made("b", seed=1))).text
    assert "2 runs in 1 group. Drawn 2026-11-23 12:00 by resscale" in text
    assert "resscale fit --run_dir a" in text
    assert "resscale fit --run_dir b" in text


@pytest.mark.parametrize("name", ["x.png", "metrics.csv", "x"])
def test_a_name_that_is_no_pages_is_refused(made: Made, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserInputError, match=rf"--out .*{name} must end in \.html.* Choose .*html"):
        write_report(group_runs([made("a")]), tmp_path / name, "today")
    assert not (tmp_path / name).exists()


def test_for_a_folder_a_page_in_it_is_proposed(tmp_path: Path) -> None:
    for folder in (tmp_path, Path()):
        with pytest.raises(UserInputError, match=f"Choose {folder / 'report.html'}, say"):
            check_page(folder)


def test_a_folder_that_is_not_there_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserInputError, match=r"none, and there is no such folder.*--out FILE"):
        write_report(group_runs([made("a")]), tmp_path / "none" / "x.html", "today")


def test_a_page_that_cannot_be_written_is_said(made: Made, tmp_path: Path) -> None:
    (tmp_path / "x.html").mkdir()
    with pytest.raises(UserInputError, match=r"Cannot write the report .*\(Is a directory\)"):
        write_report(group_runs([made("a")]), tmp_path / "x.html", "today")
