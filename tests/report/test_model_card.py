"""The model card: what its reader needs, and true of the files beside it."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from resscale import __version__
from resscale.data.augment import CenterCrop
from resscale.errors import UserInputError
from resscale.models import create_model
from resscale.report.card_facts import Accuracy
from resscale.report.export import encode_safetensors, encode_torch, sha256
from resscale.report.export_net import Architecture, Preparation
from resscale.report.model_card import (
    TORCHVISION,
    Card,
    ExportedFile,
    card_path,
    is_torchvisions,
    listed_files,
    render_card,
)

PEERS = json.loads((Path(__file__).parents[1] / "models" / "peer_facts.json").read_text())
NET = create_model("resnet8_cifar", 10, 1)
ARCHITECTURE = Architecture(
    "resnet8_cifar", 10, 1, {}, 8, Preparation(CenterCrop(8, 10), (0.3053,), (0.3762,))
)


def card(tmp_path: Path, *names: str, **changes: Any) -> Card:
    """A card of files that it writes: the net's weights, by the names' endings."""
    files = []
    for name in names or ("net.safetensors",):
        encode = encode_torch if name.endswith(".pth") else encode_safetensors
        content = encode(NET)
        (tmp_path / name).write_bytes(content)
        files.append(
            ExportedFile(
                name, "some | form", len(content), sha256(content), f"resscale export {name}"
            )
        )
    made = Card(
        architecture=ARCHITECTURE,
        net=NET,
        weights="raw",
        digest=sha256(encode_safetensors(NET)),
        files=files,
        date="2026-11-23",
        source="runs/demo/checkpoints/best.ckpt",
        accuracy={"raw": Accuracy(0.9861, 1.0), "EMA": Accuracy()},
        training=[("optimizer", "sgd"), ("recipe", "not recorded")],
        data=[("fingerprint of the manifest", "`ab12`")],
        classes=("zero", "one"),
        config={"model": {"model": "resnet8_cifar"}},
    )
    return replace(made, **changes)


def rows(page: str) -> dict[str, str]:
    """The tables of two columns, by their first."""
    return dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page, re.M))


def test_the_card_tells_the_net_its_input_and_its_cost(tmp_path: Path) -> None:
    page = render_card(card(tmp_path))
    found = rows(page)
    assert page.startswith("# resnet8_cifar, 10 classes\n")
    assert f"resscale {__version__}" in page
    assert found["network"] == "resnet8_cifar (He et al. 2015, section 4.2; rule 6n + 2)"
    # Convolutions 144 + 4,608 + 13,824 + 55,296, BNs 2 · 16 + 4 · (16 + 32 + 64), fc 650.
    assert found["parameters"] == "75,002"
    assert found["output"].startswith("logits, float32 (batch, 10)")
    assert found["images"] == "float32 (batch, 1, height, width), grey (luminance)"
    assert found["evaluation crop"] == (
        "the shorter side resized to 10 pixels (bilinear, antialiased), then the central 8x8 pixels"
    )
    assert (found["mean"], found["std"]) == ("0.3053", "0.3762")
    assert "Classes by their number: 0 `zero`, 1 `one`." in page
    assert found["optimizer"] == "sgd"
    assert found["fingerprint of the manifest"] == "`ab12`"
    assert yaml.safe_load(page.partition("~~~~yaml")[2].partition("~~~~")[0]) == {
        "model": {"model": "resnet8_cifar"}
    }


def test_the_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    page = render_card(card(tmp_path, "net.pth", "net.safetensors"))
    for name in ("net.pth", "net.safetensors"):
        content = (tmp_path / name).read_bytes()
        assert f"| `{name}` | some \\| form | {len(content):,} | `{sha256(content)}` |" in page
        assert f"\nresscale export {name}\n" in page


def test_accuracy_is_said_for_both_weights_and_never_made_up(tmp_path: Path) -> None:
    page = render_card(card(tmp_path))
    assert "| raw (these) | 98.61% | 100.00% |" in page
    assert "| EMA | not measured | not measured |" in page
    assert "| EMA (these) | not measured" in render_card(card(tmp_path, weights="EMA"))
    unknown = render_card(card(tmp_path, accuracy={"raw": Accuracy(), "EMA": Accuracy()}))
    assert "%" not in unknown
    assert "No evaluation of this step of training is recorded" in unknown


def test_what_is_not_known_of_the_input_is_said(tmp_path: Path) -> None:
    bare = replace(ARCHITECTURE, preparation=None)
    found = rows(render_card(card(tmp_path, architecture=bare, classes=(), config={})))
    assert found["mean and std"].startswith("not recorded")
    assert found["evaluation crop"].startswith("not recorded")


def test_a_section_of_which_nothing_is_known_is_one_sentence(tmp_path: Path) -> None:
    page = render_card(card(tmp_path, training=[("optimizer", "not recorded")]))
    assert "## Training\n\nNot recorded: the weights came without a configuration.\n" in page
    assert "## Data\n\n| | |\n" in page


def test_the_lines_that_load_the_weights_do_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = render_card(card(tmp_path, "net.pth", "net.safetensors"))
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        names: dict[str, Any] = {}
        exec(block, names)
        expected = NET.state_dict()
        for key, value in names["net"].state_dict().items():
            assert torch.equal(value, expected[key]), key
        assert not names["net"].training


def test_torchvisions_own_lines_stand_where_torchvision_has_the_net(tmp_path: Path) -> None:
    theirs = replace(ARCHITECTURE, name="resnet18", in_channels=3, options={}, image_size=32)
    net = create_model("resnet18", 10)
    page = render_card(card(tmp_path, "net.pth", "net.safetensors", architecture=theirs, net=net))
    assert "net = torchvision.models.resnet18(num_classes=10).eval()" in page
    assert 'load_state_dict(torch.load("net.pth", weights_only=True), strict=True)' in page
    assert 'load_state_dict(safetensors.torch.load_file("net.safetensors"), strict=True)' in page
    assert "torchvision.models" not in render_card(card(tmp_path))


def test_torchvisions_names_are_those_that_were_compared_with_it() -> None:
    compared = {name for name, facts in PEERS.items() if facts["source"].startswith("torchvision")}
    assert compared == TORCHVISION


@pytest.mark.parametrize(
    ("name", "channels", "options", "theirs"),
    [
        ("resnet50", 3, {}, True),
        ("resnet50", 3, {"drop_path": 0.1, "zero_init_residual": True}, True),
        ("resnet50", 3, {"blurpool": True}, False),  # the same keys, other logits
        ("resnet50", 3, {"stride_on": "1x1"}, False),
        ("resnet50", 1, {}, False),
        ("resnet50d", 3, {}, False),
    ],
)
def test_a_net_is_torchvisions_where_it_computes_the_same(
    name: str, channels: int, options: dict[str, Any], theirs: bool
) -> None:
    assert is_torchvisions(Architecture(name, 10, channels, options)) is theirs


def test_an_onnx_file_has_a_line_of_its_own(tmp_path: Path) -> None:
    page = render_card(card(tmp_path, "net.onnx"))
    assert 'session = onnxruntime.InferenceSession("net.onnx")' in page
    assert "load_weights" not in page


def test_a_file_that_normalises_by_itself_is_told_apart(tmp_path: Path) -> None:
    made = card(tmp_path, "net.onnx", "net.pth")
    pixels = replace(made.files[0], what="ONNX, opset 18; input `images` uint8, 0 to 255")
    page = render_card(replace(made, files=[pixels, made.files[1]]))
    assert rows(page)["of `net.onnx`"].startswith("the normalisation is inside")
    assert "of `net.pth`" not in page


def test_a_card_lists_the_other_files_of_the_same_weights(tmp_path: Path) -> None:
    before = card(tmp_path, "net.pth", "net.safetensors")
    out = tmp_path / "net.onnx"
    card_path(out).write_text(render_card(before))
    kept = listed_files(out, before.digest, overwrite=False)
    assert [(file.name, file.command) for file in kept] == [
        ("net.pth", "resscale export net.pth"),
        ("net.safetensors", "resscale export net.safetensors"),
    ]
    assert kept[0].sha256 == sha256((tmp_path / "net.pth").read_bytes())
    # The row survives being read and written once more.
    again = render_card(replace(before, files=kept))
    assert [line for line in again.splitlines() if line.startswith("| `")] == [
        line for line in render_card(before).splitlines() if line.startswith("| `")
    ]


def test_a_file_that_has_gone_or_changed_is_no_longer_listed(tmp_path: Path) -> None:
    before = card(tmp_path, "net.pth", "net.safetensors")
    out = tmp_path / "net.onnx"
    card_path(out).write_text(render_card(before))
    (tmp_path / "net.pth").unlink()
    (tmp_path / "net.safetensors").write_bytes(b"changed")
    assert listed_files(out, before.digest, overwrite=False) == []


def test_a_card_of_other_weights_is_refused_unless_it_may_be_replaced(tmp_path: Path) -> None:
    before = card(tmp_path)
    card_path(tmp_path / "net.pth").write_text(render_card(before))
    with pytest.raises(UserInputError, match=r"net\.md is there already"):
        listed_files(tmp_path / "net.pth", "0" * 64, overwrite=False)
    assert listed_files(tmp_path / "net.pth", "0" * 64, overwrite=True) == []


def test_values_cannot_break_out_of_their_cell(tmp_path: Path) -> None:
    page = render_card(card(tmp_path, data=[("training data", "a | b\n# heading")]))
    assert "| training data | a \\| b # heading |" in page
