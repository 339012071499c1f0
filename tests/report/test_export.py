"""Files of weights: their keys, their bytes, where they may be written, and written whole."""

import hashlib
import io
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load

from resscale.errors import UserInputError
from resscale.models import create_model, load_weights
from resscale.report.export import (
    check_destination,
    encode_safetensors,
    encode_torch,
    sha256,
    write_atomically,
)

PEERS = Path(__file__).parents[1] / "models" / "peer_facts.json"


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow past 10,000 bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["resnet8_cifar", "resnetv2_8_cifar", "plain8_cifar"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_loads_strictly_into_a_net_of_the_same_name(
    tmp_path: Path, name: str, suffix: str
) -> None:
    net, other = create_model(name, 10, 1), create_model(name, 10, 1)
    encode = encode_safetensors if suffix == ".safetensors" else encode_torch
    (tmp_path / f"net{suffix}").write_bytes(encode(net))
    load_weights(other, tmp_path / f"net{suffix}", strict=True)
    for key, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_keys_are_torchvisions(name: str) -> None:
    # What torchvision 0.28.0 has, as benchmarks/model_equality.py wrote it down.
    facts = json.loads(PEERS.read_text())[name]
    assert facts["source"].startswith("torchvision")
    net = create_model(name)
    plain = torch.load(io.BytesIO(encode_torch(net)), weights_only=True)
    for tensors in (plain, load(encode_safetensors(net))):
        lines = sorted(f"{key} {tuple(value.shape)}\n" for key, value in tensors.items())
        assert hashlib.sha256("".join(lines).encode()).hexdigest() == facts["keys_sha256"]
    assert list(plain) == list(net.state_dict())


def test_a_pth_is_a_plain_dict_of_contiguous_float32_tensors() -> None:
    net = create_model("resnet8_cifar", 10, 1).to(memory_format=torch.channels_last)
    plain = torch.load(io.BytesIO(encode_torch(net)), weights_only=True)
    assert type(plain) is dict
    assert all(value.is_contiguous() for value in plain.values())
    assert {value.dtype for value in plain.values()} == {torch.float32, torch.int64}


def test_safetensors_name_their_framework_as_other_readers_ask(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(encode_safetensors(create_model("resnet8_cifar", 10, 1)))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_equal_weights_give_equal_bytes_in_any_memory_layout() -> None:
    net = create_model("resnet8_cifar", 10, 1)
    first = encode_safetensors(net)
    assert encode_safetensors(net.to(memory_format=torch.channels_last)) == first
    net.fc.bias.data[0] += 1
    assert encode_safetensors(net) != first


def test_the_digest_is_the_one_that_sha256sum_prints() -> None:
    # FIPS 180-2, the example of one block.
    assert sha256(b"abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("net.pt", r"net\.pt must end in \.safetensors, \.pth or \.onnx: .* Choose .*/net\.safet"),
        ("net", r"net must end in \.safetensors, \.pth or \.onnx"),
        ("no/net.pth", r"lies in .*/no, and there is no such folder\. Make it"),
        ("there.pth", r"there\.pth is there already; .* replace it with --overwrite true\.$"),
        ("folder.onnx", r"folder\.onnx is a folder; name a file\.$"),
    ],
)
def test_a_destination_that_cannot_be_is_refused(tmp_path: Path, out: str, message: str) -> None:
    (tmp_path / "there.pth").write_bytes(b"")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserInputError, match=message):
        check_destination(tmp_path / out, tmp_path / "run", overwrite=False)


def test_a_file_that_is_there_is_replaced_on_request_unless_it_is_the_source(
    tmp_path: Path,
) -> None:
    (tmp_path / "there.pth").write_bytes(b"")
    check_destination(tmp_path / "there.pth", tmp_path / "run", overwrite=True)
    (tmp_path / "link.pth").symlink_to("there.pth")
    with pytest.raises(UserInputError, match=r"is what the weights are read from"):
        check_destination(tmp_path / "there.pth", tmp_path / "link.pth", overwrite=True)


def test_a_file_replaces_the_one_before_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomically(tmp_path / "net.pth", b"old")
    write_atomically(tmp_path / "net.pth", b"new")
    assert (tmp_path / "net.pth").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


@pytest.mark.usefixtures("small_files")
def test_a_full_disk_is_one_message_and_leaves_the_old_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "net.pth", b"old")
    with pytest.raises(
        UserInputError, match=r"net\.pth cannot be written \(.*\): 10,001 bytes are"
    ):
        write_atomically(tmp_path / "net.pth", bytes(10_001))
    assert (tmp_path / "net.pth").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]


def test_a_folder_that_takes_no_files_is_one_message() -> None:
    # Not even root writes there.
    with pytest.raises(UserInputError, match=r"^/proc/net\.pth cannot be written"):
        write_atomically(Path("/proc/net.pth"), b"new")
