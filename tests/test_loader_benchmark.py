"""`benchmarks/loader.py`, `pack.py`, `memory_flat.py`: arithmetic, tables, a real run of each."""

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import loader
import loader_contenders
import loader_data
import make_peers
import memory_flat
import numpy as np
import pack
import photos
import pytest
from PIL import Image

from resscale.cli import main as resscale

sys.path.insert(0, str(Path(loader.__file__).parent / "peers"))
import serve

MB = 1_000_000


def taken(images: int, cpu_s: float) -> dict[str, float]:
    return {"images": images, "cpu_s": cpu_s, "wall_s": 2 * cpu_s}


def cells(table: str) -> list[list[str]]:
    """Return the cells of a Markdown table's rows, its head left out."""
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A data folder of 8 JPEGs in 2 classes, and of their shards."""
    for number in range(8):
        path = tmp_path / "originals" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(noise).save(path)
    shards = tmp_path / "shards" / "originals"
    words = ["pack", "imagefolder", str(tmp_path / "originals"), str(shards), "--processes", "1"]
    assert resscale([*words, "--quiet"]) == 0
    return tmp_path


def test_cpu_time_of_all_below_a_process_is_added() -> None:
    # 1 ─ 5 ─ 3 (its number is smaller than its parent's), 1 ─ 7; 9 is somebody else's
    parents = {1: 0, 5: 1, 3: 5, 7: 1, 9: 0}
    cpu_s = {1: 100.0, 5: 1.0, 3: 2.0, 7: 4.0, 9: 50.0}
    assert serve.descendants_cpu_s(parents, cpu_s, 1) == 7.0  # 1 + 2 + 4
    assert serve.descendants_cpu_s(parents, cpu_s, 7) == 0.0


def test_own_cpu_time_counts() -> None:
    before = serve.tree_cpu_s()
    total = sum(number * number for number in range(300_000))
    assert total > 0
    assert serve.tree_cpu_s() > before


def test_ratios_are_taken_within_a_round() -> None:
    rounds = {
        # The second round was slow for both: the ratios are 0.5, 0.5 and 0.6.
        "fast": [taken(100, 0.1), taken(100, 0.4), taken(100, 0.12)],
        "torchvision": [taken(100, 0.2), taken(100, 0.8), taken(100, 0.2)],
    }
    assert loader.cpu_ms(rounds["fast"][0]) == pytest.approx(1.0)  # 0.1 s / 100
    assert loader.ratio(rounds, "fast", "torchvision") == pytest.approx(0.5)


def test_table_has_medians_and_reasons() -> None:
    contenders = loader_contenders.select("peers", ["native-originals", "ffcv-side500"])
    rounds = {
        "torchvision": [taken(1000, 4.0), taken(1000, 3.0), taken(1000, 5.0)],
        "native-originals": [taken(1000, 1.0), taken(1000, 1.5), taken(1000, 1.5)],
    }
    reference, native, ffcv = cells(
        loader.table(contenders, rounds, {"ffcv-side500": "no compiler"})
    )
    # median of 4, 3, 5 ms; 1000 images in twice 4 s of wall time
    assert reference[2:] == ["4.00", "3.00 to 5.00", "1.00", "125"]
    # ratios 1/4, 1.5/3, 1.5/5
    assert native[1:] == ["originals", "1.50", "1.00 to 1.50", "0.30", "333"]
    assert ffcv[2] == "skipped: no compiler"


def test_targets_are_judged_where_both_sides_were_measured() -> None:
    rounds = {
        "torchvision": [taken(100, 0.4)],
        "native-originals": [taken(100, 0.16)],
        "native-side320": [taken(100, 0.1)],
        "native-side500": [taken(100, 0.1)],
    }
    judged = {row[0]: row[2:] for row in cells(loader.targets(rounds))}
    assert judged == {
        "native-originals": ["0.40", "0.40", "yes"],
        "native-side320": ["0.18", "0.25", "no"],
    }
    assert loader.targets({"torchvision": [taken(100, 0.4)]}) == ""


def test_a_name_nearly_right_is_told() -> None:
    with pytest.raises(ValueError, match="Did you mean 'native-originals'"):
        loader_contenders.select("peers", ["native-original"])
    chosen = loader_contenders.select("workers", ["native-2-processes"])
    assert [contender.name for contender in chosen] == ["torchvision", "native-2-processes"]


@pytest.mark.parametrize("group", loader_contenders.GROUPS)
def test_names_are_unique_and_scripts_are_there(group: str) -> None:
    contenders = loader_contenders.GROUPS[group]
    assert len({contender.name for contender in contenders}) == len(contenders)
    known = {loader_contenders.OURS, *make_peers.PEERS}
    for contender in contenders:
        assert (loader_contenders.SCRIPTS / contender.script[0]).is_file()
        assert contender.env in known


def test_what_is_missing_is_skipped_with_its_reason(tmp_path: Path) -> None:
    (native,) = (c for c in loader_contenders.PEERS if c.name == "native-originals")
    (reference,) = (c for c in loader_contenders.PEERS if c.name == "torchvision")
    assert "shards/originals/train is missing" in str(native.why_skipped(tmp_path, tmp_path))
    assert "make_peers.py" in str(reference.why_skipped(tmp_path, tmp_path))
    (tmp_path / "torch.skipped").write_text("no space left\n")
    assert reference.why_skipped(tmp_path, tmp_path) == "no space left"


def test_the_line_that_says_why_is_taken() -> None:
    assert make_peers.last_words("building\nerror: no compiler\nsee the log\n") == (
        "error: no compiler"
    )
    assert make_peers.last_words("one\ntwo\n") == "two"
    assert make_peers.last_words("") == "it ended without a word"


def test_what_is_there_is_not_made_again(tmp_path: Path) -> None:
    step = loader_data.Step("made", loader_data.OURS, ("-c", "open('{made}', 'x')"))
    assert loader_data.make(step, tmp_path, tmp_path) == "made"
    assert (tmp_path / "made").exists()
    assert loader_data.make(step, tmp_path, tmp_path) == "is there"
    failing = loader_data.Step("other", loader_data.OURS, ("-c", "raise SystemExit('error: no')"))
    assert loader_data.make(failing, tmp_path, tmp_path) == "failed: error: no"
    assert not (tmp_path / "other").exists()


def test_one_picture_in_a_hundred_is_odd_and_all_kinds_come() -> None:
    kinds = [photos.odd_kind(number, 3072) for number in range(3072)]
    odd = [kind for kind in kinds if kind]
    assert len(odd) == 31  # 50, 150, ..., 3050
    assert set(odd) == set(photos.ODD_KINDS)


def test_sizes_are_those_of_imagenet() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([photos.draw_size(rng) for _ in range(3000)])
    assert np.median(sizes[:, 0]) == 500
    assert np.median(sizes[:, 1]) == 375
    large = (sizes.prod(axis=1) > 1_000_000).mean()
    assert 0.005 < large < 0.03


def test_quality_that_comes_nearest_is_taken() -> None:
    assert photos.fit_quality([(79, 50_000), (89, 90_000), (84, 70_000)], 75_000) == 84


def test_odd_pictures_are_what_they_are_called() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    modes = {}
    for kind in (None, *photos.ODD_KINDS):
        raw = photos.encode_photo(np.random.default_rng(1), picture, kind)
        with Image.open(io.BytesIO(raw)) as image:
            modes[kind] = (image.format, image.mode, bool(image.info.get("progressive")))
    assert modes == {
        None: ("JPEG", "RGB", False),
        "grey": ("JPEG", "L", False),
        "progressive": ("JPEG", "RGB", True),
        "cmyk": ("JPEG", "CMYK", False),
        "png": ("PNG", "RGB", False),
    }


def test_packing_rate_leaves_the_start_out() -> None:
    # 3 s of start, 1 ms per image
    assert pack.rate(taken(1000, 4.0), taken(5000, 8.0)) == pytest.approx(1000)


def test_packing_table_names_the_fastest() -> None:
    first, second, third = pack.WRITERS[:3]
    pairs = {
        first.name: [(taken(1000, 1.0), taken(2000, 2.0))],  # 1,000/s
        second.name: [(taken(1000, 1.0), taken(2000, 1.25))],  # 4,000/s; 2,000/1.25 with its start
    }
    rows = cells(pack.table((first, second, third), pairs, {third.name: "gone"}))
    assert [row[2] for row in rows] == ["1,000", "4,000", ""]
    assert [row[4] for row in rows[:2]] == ["0.25", "1.00"]
    assert rows[1][5] == "1,600"
    assert rows[2][1] == "skipped: gone"


def test_memory_of_processes_is_read() -> None:
    text = "5555-7777 ---p 00000000 [rollup]\nRss:    2048 kB\nPss:    1024 kB\nSwap: 0 kB\n"
    assert memory_flat.parse_rollup(text) == {"Rss": 2 * 1024**2, "Pss": 1024**2, "Swap": 0}


def test_growth_is_that_of_the_largest_later_epoch() -> None:
    assert memory_flat.growth([100, 104, 102]) == pytest.approx(0.04)
    flat, growing = (
        [memory_flat.Usage(size * MB, size * MB, 3) for size in sizes]
        for sizes in ((100, 104), (100, 106))
    )
    rows = cells(memory_flat.table({"a": flat, "b": growing}))
    assert rows == [
        ["a", "3", "100.0", "104.0", "+4.0%"],
        ["b", "3", "100.0", "106.0", "+6.0%: not flat"],
    ]


def test_our_loader_is_measured(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--only", "pillow-originals", "--rounds", "2", "--batch_size", "4"]
    assert loader.main([str(pictures / "peers"), str(pictures), *options]) == 0
    reference, ours = cells(capsys.readouterr().out)
    assert reference[2].startswith("skipped: no environment")
    low, _, high = ours[3].split()
    assert 0 < float(low) <= float(ours[2]) <= float(high)


def test_our_packing_is_measured(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writers = [writer for writer in pack.WRITERS if writer.name in ("ours-full", "mds")]
    options = SimpleNamespace(peers=pictures / "peers", data=pictures, rounds=1, times=3)
    pairs, reasons = pack.measure(options, writers)  # type: ignore[arg-type]
    ((small, large),) = pairs["ours-full"]
    assert (small["images"], large["images"]) == (8, 24)  # 8, and 3 × 8
    assert reasons["mds"].startswith("no environment")
    assert sorted(path.name for path in pictures.iterdir()) == ["originals", "shards"]


def test_memory_over_epochs_is_measured(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_flat, "CASES", (("processes", "pillow"),))
    shards, figure = str(pictures / "shards" / "originals" / "train"), pictures / "memory.svg"
    options = ["--epochs", "2", "--workers", "1", "--batch_size", "4", "--size", "32"]
    memory_flat.main([shards, *options, "--figure", str(figure)])
    ((name, processes, *sizes, _),) = cells(capsys.readouterr().out)
    assert name == "1 processes, pillow"
    assert int(processes) >= 2  # the rank and its reader, and what starts readers
    assert all(float(size) > 10 for size in sizes)
    assert figure.stat().st_size > 1000
