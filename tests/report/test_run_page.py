"""The page of one run: complete in itself, escaped, honest about what is not recorded."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from html_checker import checked

from resscale.report.mistakes_file import Measured, write_measured
from resscale.report.run_page import link, page_names, render_run
from resscale.report.runs import Run, load_run
from resscale.training.rundir import RunDir

Made = Callable[..., Run]


def page_of(run: Run, group: str = "a group") -> str:
    return render_run(run, group, "report.html", "2026-11-24 12:00")


def facts_of(html: str) -> dict[str, str]:
    """The text of each fact."""
    pairs = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", html, re.S)
    return {title: " ".join(re.sub(r"<[^>]+>", " ", value).split()) for title, value in pairs}


def test_the_page_has_title_facts_pictures_and_command(made: Made) -> None:
    html = page_of(made("a", summary={"num_macs": 40_813_184, "samples_seen": 1920}))
    checker = checked(html)
    assert ("html", {"lang": "en"}) in checker.tags
    assert "<title>a</title>" in html
    assert "a group. Drawn 2026-11-24 12:00 by resscale" in checker.text
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Run",
        "Loss, top-1 and learning rate",
        "Images/s and data wait",
        "Memory",
        "Mistakes",
        "Command",
    ]
    assert "resscale fit --run_dir a" in checker.text
    alternatives = [attributes["alt"] for tag, attributes in checker.tags if tag == "img"]
    assert alternatives[0] == "Loss, top-1 and learning rate: a"
    assert all(alternatives)


def test_the_facts_are_those_of_the_run(made: Made) -> None:
    run = made("a", summary={"num_macs": 40_813_184, "samples_seen": 1920})
    files = RunDir(run.path)
    # Of the epochs' 50, 51 and 52 points the last is the best, until another is worse.
    files.append_metrics({"epoch": 3, "step": 40, "val/top1": 0.4, "val/ema_top1": 0.625})
    files.append_speed({"epoch": 0, "step": 5, "memory_bytes": 3 * 2**29})
    facts = facts_of(page_of(load_run(run.path)))
    facts.pop("last written")
    assert facts == {
        "status": "done",
        "net": "resnet20_cifar",
        "parameters": "269,434",
        "GMACs per image": "0.0408",
        "best top-1": "52.00% epoch 3",
        "last top-1": "40.00% epoch 4",
        "last top-1, averaged weights": "62.50%",
        "images seen": "1,920",
        "images/s": "100",
        "data wait": "25.0%",
        "most memory": "1.5 GiB",
        "ranks": "1",
        "seed": "0",
    }


def test_what_is_not_recorded_is_said(tmp_path: Path) -> None:
    RunDir(tmp_path / "r").write_summary({"status": "failed", "reason": "no <data>"})
    facts = facts_of(page_of(load_run(tmp_path / "r")))
    facts.pop("last written")
    assert facts.pop("status") == "failed at epoch 0 no &lt;data&gt;"
    assert facts.pop("seed") == "-"
    assert set(facts.values()) == {"not recorded"}


def test_the_page_loads_nothing(made: Made, measured: Measured) -> None:
    run = made("a", summary={"command": "resscale fit --data.train https://x.example/a"})
    write_measured(dataclasses.replace(measured, images="https://x.example/val"), run.path)
    html = page_of(run)
    checker = checked(html)
    names = ("src", "href", "srcset", "data", "action")
    targets = [v for _, found in checker.tags for name, v in found.items() if name in names]
    assert len(targets) == 1 + 3 + 2  # the way back, the figures, two mistakes
    assert targets[0] == "./report.html"
    assert all(target and target.startswith("data:image/") for target in targets[1:])
    assert not {tag for tag, _ in checker.tags} & {"script", "link", "iframe", "object", "base"}
    assert not re.search(r"@import|url\(", html)
    assert "default-src 'none'" in html
    assert "https://x.example/val" in checker.text


def test_everything_from_a_run_is_escaped(made: Made) -> None:
    evil = '<script>alert("1")<|script>&'  # no directory has a slash in its name
    run = made(
        evil,
        options={"model.model": evil, "seed_everything": evil},
        summary={"status": evil, "reason": evil, "command": evil},
    )
    checker = checked(page_of(run, group=evil))
    assert "script" not in {tag for tag, _ in checker.tags}
    # Title, heading, group, status, reason, net, seed, command; and in the command to measure it.
    assert checker.text.count(evil) == 9
    (alternative, *_) = (found["alt"] for tag, found in checker.tags if tag == "img")
    assert alternative == f"Loss, top-1 and learning rate: {evil}"


def test_pages_are_named_after_report_and_run(made: Made, tmp_path: Path) -> None:
    runs = [made("a"), made("b")]
    names = page_names(runs, tmp_path / "paper.html")
    assert list(names.values()) == ["paper-a.html", "paper-b.html"]


def test_runs_of_one_name_have_pages_of_their_own(made: Made, tmp_path: Path) -> None:
    runs = [made("one/a"), made("two/a"), made("a-2"), made("three/a")]
    names = page_names(runs, tmp_path / "x.html")
    assert list(names.values()) == ["x-a.html", "x-a-2.html", "x-a-2-2.html", "x-a-3.html"]


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("x-a.html", "./x-a.html"),
        ("x-a b.html", "./x-a%20b.html"),
        ("javascript:alert(1).html", "./javascript%3Aalert%281%29.html"),
        ('x-".html', "./x-%22.html"),
    ],
)
def test_a_link_leads_to_a_file_beside_it_and_nowhere_else(name: str, address: str) -> None:
    assert link(name) == address
