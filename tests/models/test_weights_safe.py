"""Reading without executing: records are emptied, all else that a pickle names is refused."""

from __future__ import annotations

import argparse
import builtins
import functools
import itertools
import pathlib
import pickle
import sys
import threading
import types
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from resscale.errors import DataFormatError
from resscale.models.weights_safe import Inert, load_without_code


def test_the_options_that_a_training_script_saves_are_left_empty(tmp_path: Path) -> None:
    options = argparse.Namespace(lr=0.1, path="x")
    torch.save({"model": {"w": torch.ones(2)}, "args": options}, tmp_path / "c.pth")

    content = load_without_code(tmp_path / "c.pth")

    assert torch.equal(content["model"]["w"], torch.ones(2))
    assert type(content["args"]) is Inert
    assert not hasattr(content["args"], "lr")


@pytest.mark.parametrize(
    "record",
    [
        "argparse.Namespace",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    ],
)
def test_each_known_record_may_stand_beside_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str
) -> None:
    module, _, name = record.rpartition(".")
    # Only so does pickle write the name; nothing of this module is there when the file is read.
    written = type(name, (), {"__module__": module})
    with monkeypatch.context() as patch:
        for package in itertools.accumulate(module.split("."), "{}.{}".format):
            patch.setitem(sys.modules, package, types.SimpleNamespace(**{name: written}))
        torch.save({"w": torch.ones(2), "other": written()}, tmp_path / "c.pth")

    assert type(load_without_code(tmp_path / "c.pth")["other"]) is Inert


@pytest.mark.parametrize("compressed", ["data.pkl", "data/0"])
def test_an_archive_that_was_compressed_is_refused(tmp_path: Path, compressed: str) -> None:
    # Its compressed bytes were taken for the numbers, and a pickle of zeros for gigabytes.
    torch.save({"w": torch.ones(1000)}, tmp_path / "sound.pth")
    with (
        zipfile.ZipFile(tmp_path / "sound.pth") as sound,
        zipfile.ZipFile(tmp_path / "packed.pth", "w") as packed,
    ):
        for entry in sound.infolist():
            is_chosen = entry.filename.endswith(compressed)
            kind = zipfile.ZIP_DEFLATED if is_chosen else zipfile.ZIP_STORED
            packed.writestr(entry.filename, sound.read(entry), kind)

    with pytest.raises(DataFormatError, match=r"packed\.pth is a compressed archive, .* anew\."):
        load_without_code(tmp_path / "packed.pth")


def test_a_record_that_is_handed_arguments_and_state_forgets_them() -> None:
    record = Inert("rm", 1)
    record.__setstate__({"__class__": str})

    assert (type(record), vars(record)) == (Inert, {})


class Calls:
    """Unpickled as a call of `function` with `arguments`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Calls(builtins.eval, "1"), "eval"),
        (Calls(builtins.getattr, "", "join"), "getattr"),
        (Calls(builtins.__import__, "os"), "__import__"),
        (Calls(functools.partial, print), "functools.partial"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (pathlib.PurePosixPath("x"), "pathlib.PurePosixPath"),
        (threading.Barrier, "threading.Barrier"),
    ],
)
def test_whatever_could_run_is_refused_by_its_name(
    tmp_path: Path, value: object, name: str
) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}, "other": value}, tmp_path / "c.pth")

    with pytest.raises(DataFormatError, match=rf"executing code: its pickle asks for {name}, and"):
        load_without_code(tmp_path / "c.pth")


def test_the_harmless_names_hold_only_while_a_file_is_read(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace()}, tmp_path / "c.pth")
    load_without_code(tmp_path / "c.pth")

    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "c.pth", weights_only=True)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(1, 1)), tmp_path / "c.pt")

    with pytest.raises(DataFormatError, match=r"TorchScript archive, which holds code.*state_dict"):
        load_without_code(tmp_path / "c.pt")


def test_the_advice_to_switch_the_safety_off_is_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / "c.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))

    with pytest.raises(DataFormatError) as caught:
        load_without_code(tmp_path / "c.pth")

    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)
