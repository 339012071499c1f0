"""The commands pack, index and inspect, called with the arguments that a user types."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resscale.cli_data import run_index, run_inspect, run_pack
from resscale.data.manifest import Manifest
from resscale.errors import DataFormatError, UserInputError

RUNS = {"pack": run_pack, "index": run_index, "inspect": run_inspect}


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    out = tmp_path / "digits"
    run_pack(["digits", str(out), "--limit", "50", "--processes", "1"])
    return out


@pytest.mark.parametrize("command", list(RUNS))
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert RUNS[command](["--help"]) == 0
    assert f"  resscale {command} " in capsys.readouterr().out


@pytest.mark.parametrize(
    "source", ["imagenet", "imagefolder", "idx", "cifar10", "cifar100", "digits"]
)
def test_help_of_each_source(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_pack([source, "--help"]) == 0
    assert f"example:\n  resscale pack {source} " in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from resscale.cli_data import run_pack; run_pack(['--help']);"
        "heavy = {'numpy', 'torch', 'webdataset', 'PIL', 'rich'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("command", "line", "message"),
    [
        ("pack", "digit out", r"invalid choice: 'digit'.*Did you mean 'digits'\?"),
        ("pack", "digits out --limt 3", r"unrecognized arguments: --limt 3.*mean '--limit'\?"),
        ("pack", "digits out --limt=3", r"Did you mean '--limit'\?"),
        ("pack", "idx in out --format jpeg", r"invalid choice: 'jpeg'.*Did you mean 'jpg'\?"),
        ("pack", "digits out --limit ten", "--limit: invalid int value: 'ten'"),
        ("pack", "imagefolder in", "the following arguments are required: OUT"),
        ("pack", "", "the following arguments are required: SOURCE"),
        ("pack", "imagefolder none out", "none is not there; name the folder"),
        ("pack", "cifar1 in out", r"invalid choice: 'cifar1'.*Did you mean 'cifar10'\?"),
        ("pack", "cifar10 none out", "none is not there; name CIFAR-10's archive"),
        ("pack", "cifar100 . out --resize 8", r"--resize 8\. Other sources have --resize, this"),
        ("pack", "digits out --processes 0", "--processes: 0: must be above 0"),
        ("pack", "digits out --part 3", "--part 3: must be I/N, part I of N, counted from 0"),
        ("pack", "digits out --part 16/16", r"--part 16/16: .* of 16 parts the last is 15/16\."),
        ("index", "shards --verfy", r"Did you mean '--verify'\?"),
        ("index", "none.tar", r"none\.tar is missing"),
        ("index", "https://a.org/b.tar", r"a\.org cannot be written to: .* --out DIR"),
        ("index", "pipe:cat", "is a command"),
        ("inspect", "none", "there is no such folder"),
        ("inspect", "none --chek", r"Did you mean '--check'\?"),
        ("index", "a.tar --processes 0", "--processes: 0: must be above 0"),
        ("inspect", "a --images 0", "--images: 0: must be above 0"),
    ],
)
def test_wrong_arguments(command: str, line: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message) as caught:
        RUNS[command](line.split())
    assert caught.value.exit_code == 2


def test_pack_reports_and_names_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["digits", str(tmp_path), "--limit", "50", "--processes", "1"]
    assert run_pack(line) == 0
    out = capsys.readouterr().out.splitlines()
    assert re.match(rf"{tmp_path}/train: 50 samples of 10 classes in 1 shard, \S+ MB, ", out[0])
    assert out[-1] == f"Next: resscale inspect {tmp_path}/train"
    assert run_pack([*line, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "it was there already, with the same options" in captured.out
    assert captured.err == ""


def test_pack_in_parts_says_what_is_missing_and_who_ended_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["digits", str(tmp_path), "--limit", "50", "--samples_per_shard", "20"]
    line += ["--processes", "1", "--part"]
    assert run_pack([*line, "1/2"]) == 0
    captured = capsys.readouterr()
    assert f"Packing train: part 1/2, 20 of 50 samples into {tmp_path}/train" in captured.err
    out = captured.out.splitlines()
    assert out[0].startswith(f"{tmp_path}/train: part 1/2, 20 samples in 1 shard, is done, ")
    assert out[1].startswith("  2 shards of other parts are not there yet; ")  # 20 and 10 samples
    assert "Next:" not in out[-1]
    assert run_pack([*line, "0/2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{tmp_path}/train: 50 samples of 10 classes in 3 shards, ")
    assert "; all parts are there, 0/2 ended last after " in out[0]
    assert out[-1] == f"Next: resscale inspect {tmp_path}/train"


def test_pack_imagefolder_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "in" / name / "x.jpg")
    (tmp_path / "in" / "a" / "broken.jpg").write_bytes(b"broken")
    line = ["imagefolder", str(tmp_path / "in"), str(tmp_path / "out"), "--split", "all"]
    assert run_pack([*line, "--resize", "15", "--processes", "1"]) == 0
    assert f"1 left out, see {tmp_path}/out/all/left_out.jsonl" in capsys.readouterr().out
    assert Manifest.load(tmp_path / "out" / "all").source["options"]["resize"] == 15


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").exists(),
    reason="Debian's dataset-fashion-mnist is absent",
)
def test_pack_idx_of_the_real_fashion_mnist(tmp_path: Path) -> None:
    line = ["idx", "/usr/share/datasets/fashion-mnist", str(tmp_path), "--classes", "fashion-mnist"]
    assert run_pack([*line, "--limit", "100", "--processes", "1"]) == 0
    manifest = Manifest.load(tmp_path / "test")
    assert manifest.num_samples == 100
    assert manifest.classes[0] == "T-shirt/top"


@pytest.mark.parametrize(
    ("kind", "batches", "names"),
    [
        ("cifar10", [f"data_batch_{n}.bin" for n in range(1, 6)], "batches.meta.txt"),
        ("cifar100", ["train.bin"], "fine_label_names.txt"),
    ],
)
def test_pack_cifar_without_its_test_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, batches: list[str], names: str
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    num_classes, label_bytes = {"cifar10": (10, 1), "cifar100": (100, 2)}[kind]
    for batch in batches:
        (source / batch).write_bytes((bytes([9] * label_bytes) + bytes(3072)) * 2)
    (source / names).write_text("".join(f"class{n}\n" for n in range(num_classes)))
    line = [kind, str(source), str(tmp_path / "out"), "--format", "png", "--processes", "1"]
    assert run_pack(line) == 0
    count, title = 2 * len(batches), kind.upper().replace("R1", "R-1")
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{tmp_path}/out/train: {count} samples of {num_classes} classes in 1")
    assert out[1] == f"  {title}'s train has 50,000 images, this one {count}"
    manifest = Manifest.load(tmp_path / "out" / "train")
    assert manifest.source["command"] == f"resscale pack {kind}"
    assert manifest.class_counts == (0,) * 9 + (count,)
    assert not (tmp_path / "out" / "test").exists()


def test_pack_imagenet_of_another_tree(tmp_path: Path) -> None:
    with pytest.raises(DataFormatError, match="resscale pack imagefolder"):
        run_pack(["imagenet", str(tmp_path), str(tmp_path / "out")])


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    code = "import sys; from resscale.cli_data import run_pack; sys.exit(run_pack(sys.argv[1:]))"
    line = ["digits", str(tmp_path / "out"), "--samples_per_shard", "5", "--processes", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *line], stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "out").glob("train/*.tar")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("Stopped. What is finished is kept")
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").rglob("*.tmp"))
    assert run_pack([*line[:-1], "1", "--quiet"]) == 0
    Manifest.load(tmp_path / "out" / "train").check_sizes()


def test_index_then_verify_then_damage(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (digits / "train" / "manifest.json").unlink()
    (tmp_path / "names").write_text("\n".join("0123456789"))
    shards = f"{digits}/train/*.tar"
    assert run_index([shards, "--classes", str(tmp_path / "names"), "--processes", "1"]) == 0
    assert f"{digits}/train: 50 samples of 10 classes in 1 shard" in capsys.readouterr().out
    assert run_index([f"{digits}/train", "--verify"]) == 0
    assert "1 shard as the manifest says" in capsys.readouterr().out
    with next((digits / "train").glob("*.tar")).open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataFormatError, match="1 of the 1 shards"):
        run_index([shards, "--verify"])


def test_index_into_another_folder_without_checksums(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    run_index([f"{digits}/train", "--out", str(out), "--no-checksums", "--processes", "1"])
    text = capsys.readouterr().out
    assert f"the shards are in {digits}/train; use --data.train {out}" in text
    assert "no SHA-256 of 1, checked by size alone; --checksums reads them whole" in text
    run_index([str(out), "--verify"])
    expected = f"{out}: 1 shard as the manifest says; 1 by size alone, without a SHA-256\n"
    assert capsys.readouterr().out == expected


def test_index_of_shards_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("x.jpg"))
    assert run_index([str(tmp_path)]) == 0
    assert "no labels (.cls): good for predicting" in capsys.readouterr().out


def test_inspect_writes_the_sheet_into_the_working_folder(
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_inspect([str(digits / "train")]) == 0
    assert (tmp_path / "train-contact-sheet.png").exists()
    assert "samples  50 in 1 shard of 50" in capsys.readouterr().out


def test_inspect_check_ends_with_the_number_of_bad_samples(digits: Path, tmp_path: Path) -> None:
    shard = next((digits / "train").glob("*.tar"))
    raw = shard.read_bytes()
    shard.write_bytes(raw.replace(b"\xff\xd8\xff\xe0", b"\0\0\0\0", 2))
    line = [str(digits / "train"), "--check", "--processes", "1"]
    with pytest.raises(DataFormatError, match=r"2 of 50 samples of .* are bad, as listed"):
        run_inspect([*line, "--out", str(tmp_path / "sheet.png")])
    shutil.rmtree(digits)
