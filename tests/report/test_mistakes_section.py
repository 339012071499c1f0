"""A run's mistakes on its page: classes, pictures and confusion, escaped and readable."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from html_checker import checked, rows_of

from resscale.errors import DataFormatError
from resscale.report.mistakes_file import MISTAKES_FILE, Measured, identify, write_measured
from resscale.report.mistakes_section import mistakes_sections
from resscale.report.runs import Run

Made = Callable[..., Run]


@pytest.fixture
def shown(made: Made) -> Callable[[Measured], str]:
    """A function that returns the sections of a run with such mistakes."""

    run = made("a")

    def show(measured: Measured) -> str:
        write_measured(measured, run.path)
        return mistakes_sections(run)

    return show


Shown = Callable[[Measured], str]


def test_what_was_not_measured_is_said_with_the_command(made: Made) -> None:
    run = made("a b")
    text = checked(mistakes_sections(run)).text
    assert "Not measured. Classes, pictures and confusion of its best checkpoint: " in text
    assert f"resscale report '{run.path}' --mistakes" in text


def test_it_says_which_weights_were_measured_on_what(shown: Shown, measured: Measured) -> None:
    why = "they scored 66.67% at this step, the averaged ones 60.00%"
    text = checked(shown(dataclasses.replace(measured, why=why))).text
    # 3 dogs and 2 foxes of 15 images
    assert (
        "5 of 15 validation images (33.33%) are taken for another class, out of 3 classes" in text
    )
    assert (
        "Measured 2026-11-24 10:00 on shards/val, at 8 pixels in 32-true, each image once: "
        f"checkpoints/best.ckpt behind step 30, weights as trained ({why})." in text
    )
    averaged = shown(dataclasses.replace(measured, averaged=True))
    assert "behind step 30, averaged weights." in checked(averaged).text


def test_the_worst_classes_stand_in_a_table(shown: Shown, measured: Measured) -> None:
    html = shown(measured)
    assert rows_of(html, "Worst-classified classes") == [
        ["class", "images", "top-1, %", "taken for"],  # of three classes, top-5 says nothing
        ["dog", "5", "40.0", "cat (2 times)"],
        ["fox", "6", "66.7", "dog (2 times)"],
    ]
    six = dataclasses.replace(
        measured,
        samples=(4, 5, 6, 0, 0, 1),
        hits=(4, 2, 4, 0, 0, 1),
        hits_top5=(4, 4, 6, 0, 0, 1),
    )
    html = shown(six)
    row = rows_of(html, "Worst-classified classes")[1]
    assert row == ["dog", "5", "40.0", "80.0", "cat (2 times)"]
    assert "Classes without validation images: 2." in html


def test_the_contact_sheet_names_prediction_label_and_key(shown: Shown, measured: Measured) -> None:
    html = shown(measured)
    tiles = re.findall(r"<li>.*?</li>", html, re.S)
    assert [re.sub(r"<[^>]+>", " ", tile).split() for tile in tiles] == [
        ["cat", "98.7%", "label", "dog", "1.0%", "val-7"],
        ["dog", "50.0%", "label", "fox", "val-3"],
    ]
    assert all('<img class="tiny" alt="" src="data:image/png;base64,' in tile for tile in tiles)


@pytest.mark.parametrize(
    ("value", "text"), [(0.9994, "99.9%"), (0.99951, "99.951%"), (1.0, "99.999%")]
)
def test_no_probability_is_rounded_up_to_certainty(
    shown: Shown, measured: Measured, value: float, text: str
) -> None:
    sure = dataclasses.replace(measured.confident[0], probability=value)
    assert f"<span>{text}</span>" in shown(dataclasses.replace(measured, confident=(sure,)))


def test_the_matrix_is_a_table_with_headings_whose_colours_follow_the_shares(
    shown: Shown, measured: Measured
) -> None:
    html = shown(measured)
    assert rows_of(html, "Confusion") == [
        ["label", "cat", "dog", "fox", "images"],
        ["cat", "4", "0", "0", "4"],
        ["dog", "2", "2", "1", "5"],
        ["fox", "0", "2", "4", "6"],
    ]
    table = html.partition("<h2>Confusion</h2>")[2].partition("</table>")[0]
    assert table.count('<th scope="col">') == 4
    assert table.count('<th scope="row">') == 3
    heat = dict(re.findall(r'class="(hit|miss)" style="--heat: ([0-9.]+)">2<', table))
    # The deepest orange, 0.6, is for the largest share of a row: 2 of 5 dogs; so 2 of 6 foxes have
    # 0.6 × (2/6) / (2/5) = 0.5. Blue is 0.45 × 2/5 for the right dogs.
    assert heat == {"hit": "0.180", "miss": "0.500"}
    assert 'class="miss" style="--heat: 0.600">2<' in table
    assert "the deepest is 40.0%" in html


def test_long_names_are_numbered_and_the_rest_is_counted(shown: Shown, measured: Measured) -> None:
    names = tuple(f"a class {label}" for label in range(30))
    many = dataclasses.replace(
        measured,
        samples=(10,) * 30,
        hits=(8,) * 29 + (10,),
        hits_top5=(10,) * 30,
        # Each is taken for the next one; class 0 also for the last one.
        pairs=((0, 1, 1), (0, 29, 1), *((c, c + 1, 2) for c in range(1, 29))),
        classes=names,
    )
    html = shown(many)
    rows = rows_of(html, "Confusion")
    assert rows[0][:3] == ["label", "1", "2"]
    assert rows[0][-2:] == ["other", "images"]
    assert len(rows) == 13
    assert all(sum(map(int, row[1:-1])) == int(row[-1]) == 10 for row in rows[1:])
    first = rows[1][0].removeprefix("1 ")
    assert f'<abbr title="{first}">1</abbr>' in html
    assert "the classes that are mixed up most" in html


def test_pairs_have_their_share_of_the_class(shown: Shown, measured: Measured) -> None:
    assert rows_of(shown(measured), "Most confused pairs") == [
        ["label", "taken for", "images", "of the class"],
        ["dog", "cat", "2", "40.0%"],  # 2 of 5
        ["fox", "dog", "2", "33.3%"],
        ["dog", "fox", "1", "20.0%"],
    ]


def test_a_net_without_mistakes_has_nothing_to_show(shown: Shown, measured: Measured) -> None:
    one = dataclasses.replace(
        measured, samples=(7,), hits=(7,), hits_top5=(7,), pairs=(), confident=()
    )
    html = shown(one)
    assert "0 of 7 validation images (0.00%) are taken for another class, out of 1 class." in (
        checked(html).text
    )
    assert html.count("<h2>") == 1


def test_images_that_cannot_be_decoded_are_named(shown: Shown, measured: Measured) -> None:
    damaged = dataclasses.replace(measured, bad=(("val-9", "torn <off>"),), num_bad=3)
    text = checked(shown(damaged)).text
    assert "3 images cannot be decoded and count nowhere: val-9 (torn <off>); and 2 more" in text


def test_everything_is_escaped(shown: Shown, measured: Measured) -> None:
    evil = '<script>alert("1")</script>&'
    html = shown(
        dataclasses.replace(
            measured,
            checkpoint=evil,
            why=evil,
            images=evil,
            precision=evil,
            date=evil,
            classes=(evil, evil, evil),
            confident=(dataclasses.replace(measured.confident[0], key=evil),),
            bad=((evil, evil),),
            num_bad=1,
        )
    )
    checker = checked(html)
    assert "script" not in {tag for tag, _ in checker.tags}
    titles = [attributes["title"] for tag, attributes in checker.tags if tag == "abbr"]
    assert titles == [evil] * 3
    # Checkpoint, why, images, precision, date, key and reason; 2 × 2 in the classes, 3 in the
    # sheet, 3 rows of the matrix, 3 × 2 in the pairs.
    assert checker.text.count(evil) == 7 + 4 + 3 + 3 + 6


def test_a_checkpoint_that_was_written_anew_since_is_said(made: Made, measured: Measured) -> None:
    run = made("a")
    path = run.path / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    write_measured(dataclasses.replace(measured, identity=identify(path)), run.path)
    assert "written anew" not in mistakes_sections(run)
    path.write_bytes(b"other weights")
    assert "has been written anew since: measure again with" in mistakes_sections(run)
    path.unlink()
    assert "written anew" not in mistakes_sections(run)


def test_a_damaged_file_is_refused(made: Made) -> None:
    run = made("a")
    Path(run.path / MISTAKES_FILE).write_text("{")
    with pytest.raises(DataFormatError, match="measure anew with --mistakes"):
        mistakes_sections(run)
