"""`benchmarks/step.py`: arithmetic, the table, and a real run of our two loops."""

import argparse
import json
from pathlib import Path

import pytest
import step


def options(*words: str) -> argparse.Namespace:
    return step.build_parser().parse_args(words)


def taken(images: int, wall_s: float, cpu_s: float, memory_bytes: int = 0) -> dict[str, float]:
    return {"images": images, "wall_s": wall_s, "cpu_s": cpu_s, "memory_bytes": memory_bytes}


def test_ratios_are_of_rates_within_a_round() -> None:
    rounds = {
        # The second round was slow for both.
        "plain": [taken(100, 1.0, 2.0), taken(100, 4.0, 6.0), taken(100, 1.0, 2.0)],
        "resscale": [taken(100, 0.5, 2.0), taken(100, 2.0, 8.0), taken(100, 0.4, 4.0)],
    }
    assert step.ratio(rounds, "resscale", "plain", "cuda") == 2.0  # 2, 2 and 2.5
    assert step.ratio(rounds, "resscale", "plain", "cpu") == 0.75  # 1, 0.75 and 0.5


def test_the_table_tells_what_is_compared_and_why_loops_are_left_out() -> None:
    rounds = {
        "plain": [taken(80, 2.0, 9.0, 2**30), taken(80, 4.0, 9.0, 2**30)],
        "resscale": [taken(80, 1.0, 9.0, 2**31), taken(80, 2.0, 9.0, 2**31)],
    }
    loops = [loop for loop in step.LOOPS if loop.name in ("plain", "resscale", "timm")]
    text = step.table(loops, rounds, {"timm": "no environment"}, "cuda", steps=10)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    # 80 images in 2 and 4 s: 40 and 20 a second; 10 steps each
    assert rows[2] == [
        *("plain loop, our net", "30.0", "300.00", "200.00 to 400.00", "1.000", "-", "1.00"),
    ]
    assert rows[3] == [
        "resscale fit",
        *("60.0", "150.00", "100.00 to 200.00", "2.000", "-", "2.00"),
    ]
    assert rows[4][:2] == ["timm", "left out: no environment"]


def test_cuda_graphs_and_real_images_run_where_they_can() -> None:
    names = [loop.name for loop in step.choose_loops(options("--peer_python", "python3"))]
    assert names == ["plain", "resscale", "graphs", "timm", "torchvision"]
    words = ("--device", "cpu", "--shards", "shards/train", "--only", "shards")
    assert [loop.name for loop in step.choose_loops(options(*words))] == ["plain", "shards"]


def test_each_loop_is_told_the_same_setting(tmp_path: Path) -> None:
    asked = options(
        str(tmp_path), "--batch_size", "32", "--shards", "s", "--compile_mode", "default"
    )
    by_name = {loop.name: step.command_of(loop, asked) for loop in step.LOOPS}
    assert all("--batch_size=32" in command for command in by_name.values())
    assert "--compile_mode=reduce-overhead" in by_name["graphs"]
    assert "--compile_mode=default" in by_name["timm"]
    assert [name for name, command in by_name.items() if "--shards=s" in command] == ["shards"]
    assert by_name["timm"][0] == str(tmp_path / "torch" / "bin" / "python")
    assert "no environment" in (step.why_left_out(step.LOOPS[3], asked) or "")
    assert step.why_left_out(step.LOOPS[0], asked) is None
    assert step.why_left_out(step.LOOPS[3], options("--peer_python", "python3")) is None


def test_both_of_our_loops_train_in_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--device cpu --model resnet8_cifar --image_size 8 --batch_size 4 --num_classes 10"
    words += " --steps 2 --rounds 2 --compile false --only resscale"
    file = tmp_path / "rounds.json"
    assert step.main([*words.split(), "--json", str(file)]) == 0
    rounds = json.loads(file.read_text())["rounds"]
    assert {name: [one["images"] for one in found] for name, found in rounds.items()} == {
        "plain": [8, 8],
        "resscale": [8, 8],
    }
    assert all(one["cpu_s"] > 0 for found in rounds.values() for one in found)
    assert "| resscale fit |" in capsys.readouterr().out
