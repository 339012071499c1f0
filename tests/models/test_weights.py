"""load_weights: every kind of file goes in, and what does not fit is said and changes nothing."""

from __future__ import annotations

import copy
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rank_server import RankServer
from resscale.errors import DataFormatError, UserInputError
from resscale.models import ResNet, create_model
from resscale.models.weights import LoadedWeights, load_weights


def net(**arguments) -> ResNet:
    return ResNet(
        arguments.pop("block", "basic"),
        arguments.pop("depths", (1, 1)),
        (4, 8),
        num_classes=arguments.pop("num_classes", 3),
        **arguments,
    )


def trained(**arguments) -> ResNet:
    """A net whose every number is its own, running statistics too."""
    model = net(**arguments)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape) * 100)
    return model


def same(model: nn.Module, other: nn.Module) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in ours | theirs)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


# What may be in a file, and the entry that is named.
CONTENTS = {
    "a plain state dict": (lambda s: s, ""),
    "an entry state_dict": (lambda s: {"state_dict": s, "epoch": 3}, "state_dict"),
    "an entry model": (lambda s: {"model": s, "rng": torch.zeros(8)}, "model"),
    "an entry model_state_dict": (lambda s: {"model_state_dict": s}, "model_state_dict"),
    "an average alone": (lambda s: {"state_dict_ema": s}, "state_dict_ema"),
    "a state dict beside its average": (
        lambda s: {"state_dict_ema": {k: v + 1 for k, v in s.items()}, "state_dict": s},
        "state_dict",
    ),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_the_weights_of_a_torch_file_are_found(tmp_path: Path, content: str, suffix: str) -> None:
    wrap, entry = CONTENTS[content]
    source, model, path = trained(), net(), tmp_path / f"weights{suffix}"
    torch.save(wrap(source.state_dict()), path)

    loaded = load_weights(model, path)

    assert same(model, source)
    # 3 convolutions a stage less the stem's: 1 + 2 + 2 + 1 projection = 6; as many BNs of 5; fc 2.
    assert loaded == LoadedWeights(str(path), entry, 6 + 6 * 5 + 2, skipped=(), missing=())


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_safetensors_are_known_by_name_or_content(tmp_path: Path, name: str) -> None:
    source, model = trained(), net()
    save_file(source.state_dict(), tmp_path / name)

    assert load_weights(model, tmp_path / name).entry == ""

    assert same(model, source)


def test_files_in_the_format_before_torch_1_6_are_read(file: Path) -> None:
    source, model = trained(), net()
    torch.save(source.state_dict(), file, _use_new_zipfile_serialization=False)

    load_weights(model, file)

    assert same(model, source)


def test_a_checkpoint_of_a_training_run_is_read(
    rank_server: RankServer, tmp_path: Path, repository: Path
) -> None:
    run = rank_server.run(
        "fit", "--config", str(repository / "configs/demo.yaml"), "--run_dir=run",
        "--model.model", "resnet20_cifar", "--trainer.max_steps", "1", cwd=tmp_path,
    )  # fmt: skip
    assert run.code == 0, run.said
    model = create_model("resnet20_cifar", num_classes=10, in_channels=1)
    path = tmp_path / "run/checkpoints/last.ckpt"

    loaded = load_weights(model, path)

    saved = torch.load(path, weights_only=True)["state_dict"]
    assert loaded.entry == "state_dict"
    assert loaded.num_tensors == len(model.state_dict()) == len(saved)
    for key, value in model.state_dict().items():
        assert torch.equal(value, saved[f"model.{key}"]), key


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "_orig_mod.", "_forward_module.", "_forward_module.model._orig_mod.",
     "module.module.", "_orig_mod.module.model."],
)  # fmt: skip
def test_the_prefixes_of_wrappers_are_taken_off(file: Path, prefix: str) -> None:
    source, model = trained(), net()
    torch.save({prefix + key: value for key, value in source.state_dict().items()}, file)

    load_weights(model, file)

    assert same(model, source)


def test_a_wrapped_model_takes_plain_weights(file: Path) -> None:
    source, model = trained(), net()
    torch.save(source.state_dict(), file)

    load_weights(nn.DataParallel(torch.compile(model, backend="eager")), file)

    assert same(model, source)


def test_a_file_with_one_weight_twice_is_refused(file: Path) -> None:
    state = trained().state_dict()
    torch.save(state | {"module.fc.bias": state["fc.bias"]}, file)

    with pytest.raises(UserInputError, match=r"has both 'fc\.bias' and 'module\.fc\.bias'"):
        load_weights(net(), file)


def test_dtype_and_memory_format_of_the_model_stay(file: Path) -> None:
    source = trained()
    torch.save(source.half().state_dict(), file)
    model = net().to(torch.bfloat16).to(memory_format=torch.channels_last)
    before = {key: (v.dtype, v.stride(), v.data_ptr()) for key, v in model.state_dict().items()}

    load_weights(model, file)

    after = {key: (v.dtype, v.stride(), v.data_ptr()) for key, v in model.state_dict().items()}
    assert after == before
    assert torch.equal(model.fc.weight, source.fc.weight.to(torch.bfloat16))
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(p.requires_grad for p in model.parameters())


def test_missing_batch_counters_are_let_be(file: Path) -> None:
    source, model = trained(), net()
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("batches_tracked")}
    torch.save(state, file)

    loaded = load_weights(model, file)

    assert loaded.num_tensors == 6 + 6 * 4 + 2  # as above, without the counters of 6 BNs
    assert model.bn1.num_batches_tracked == 0
    assert torch.equal(model.bn1.running_var, source.bn1.running_var)


def test_without_strict_the_keys_that_both_have_are_loaded_and_the_rest_is_named(
    file: Path,
) -> None:
    source, model = trained(), net()
    before = copy.deepcopy(model)
    state = source.state_dict()
    del state["layer1.0.conv1.weight"]
    torch.save(state | {"extra.weight": torch.ones(1)}, file)

    loaded = load_weights(model, file, strict=False)

    assert loaded.skipped == ("extra.weight",)
    assert loaded.missing == ("layer1.0.conv1.weight",)
    assert torch.equal(model.layer1[0].conv1.weight, before.layer1[0].conv1.weight)
    assert torch.equal(model.layer1[0].conv2.weight, source.layer1[0].conv2.weight)


def test_without_strict_a_file_of_something_else_is_refused(file: Path) -> None:
    torch.save({"embedding.weight": torch.ones(2, 2)}, file)

    with pytest.raises(UserInputError, match="does not fit the model: no key in common"):
        load_weights(net(), file, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_a_failure_leaves_the_model_as_it_was(file: Path, strict: bool) -> None:
    model = trained()
    before = copy.deepcopy(model)
    torch.save(trained(in_channels=1).state_dict(), file)

    with pytest.raises(UserInputError, match="1 key of another shape"):
        load_weights(model, file, strict=strict)

    assert same(model, before)


@pytest.mark.parametrize("num_classes", [5, 3])
def test_skip_classifier_leaves_it_fresh_and_loads_everything_else(
    file: Path, num_classes: int
) -> None:
    source, model = trained(num_classes=num_classes), net(num_classes=3)
    fresh = copy.deepcopy(model.fc)
    torch.save(source.state_dict(), file)

    loaded = load_weights(model, file, skip_classifier=True)

    assert set(loaded.skipped) == {"fc.weight", "fc.bias"}
    assert torch.equal(model.fc.weight, fresh.weight)
    assert torch.equal(model.fc.bias, fresh.bias)
    model.fc = source.fc
    assert same(model, source)


class ConvolutionalHead(nn.Module):
    """Keys of the pre-activation nets: the last layer is a 1x1 convolution `head.fc`."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, bias=False)))
        self.head = nn.Sequential(OrderedDict(fc=nn.Conv2d(4, num_classes, 1)))


def test_a_convolutional_classifier_is_one_too(file: Path) -> None:
    source, model = ConvolutionalHead(1000), ConvolutionalHead(10)
    torch.save(source.state_dict(), file)

    with pytest.raises(
        UserInputError,
        match=r"head\.fc\.weight: 1000×4×1×1, model 10×4×1×1.*skip_classifier=True.*"
        r"num_classes=1000\.",
    ):
        load_weights(model, file)
    load_weights(model, file, skip_classifier=True)

    assert torch.equal(model.stem.conv.weight, source.stem.conv.weight)


def test_a_file_without_classifier_can_be_loaded_without_it(file: Path) -> None:
    source, model = trained(), net()
    torch.save({k: v for k, v in source.state_dict().items() if not k.startswith("fc")}, file)

    with pytest.raises(UserInputError, match=r"2 keys missing \(fc\.weight, fc\.bias\).*skip_cl"):
        load_weights(model, file)
    loaded = load_weights(model, file, skip_classifier=True)

    assert loaded.num_tensors == 36
    assert torch.equal(model.conv1.weight, source.conv1.weight)


def test_a_model_without_memory_is_refused(file: Path) -> None:
    torch.save(trained().state_dict(), file)
    with torch.device("meta"):
        model = net()

    with pytest.raises(UserInputError, match=r"on the meta device.*to_empty"):
        load_weights(model, file)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "resnet18.pth")

    with pytest.raises(UserInputError, match=r"no weights file .*Did you mean 'resnet18\.pth'\?"):
        load_weights(net(), tmp_path / "resnet81.pth")


def test_a_path_may_begin_with_a_tilde(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = trained(), net()
    torch.save(source.state_dict(), file)
    monkeypatch.setenv("HOME", str(file.parent))

    load_weights(model, f"~/{file.name}")

    assert same(model, source)


def test_a_file_url_is_read_where_it_lies(tmp_path: Path) -> None:
    source, model, path = trained(), net(), tmp_path / "with space.pth"
    torch.save(source.state_dict(), path)

    loaded = load_weights(model, path.as_uri())

    assert "%20" in path.as_uri()
    assert loaded.source == path.as_uri()
    assert same(model, source)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file://elsewhere/resnet.pth", "host 'elsewhere'.*of this machine"),
        ("s3://bucket/resnet.pth?key=secret", "s3://bucket/resnet.pth begins with s3://.*Copy"),
    ],
)
def test_urls_of_other_kinds_are_refused(url: str, message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        load_weights(net(), url)


class WritesAFile:
    """What a hostile file does: run a command while it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".safetensors"])
def test_a_hostile_pickle_does_not_run(tmp_path: Path, form: str, suffix: str) -> None:
    target, path = tmp_path / "ran", tmp_path / f"weights{suffix}"
    content = {"state_dict": trained().state_dict(), "extra": WritesAFile(target)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    model = net()
    before = copy.deepcopy(model)

    with pytest.raises(DataFormatError):
        load_weights(model, path)

    assert not target.exists()
    assert same(model, before)
    if form != "pickle" and suffix != ".safetensors":
        torch.load(path, weights_only=False)
        assert target.exists()  # the payload is a working one


def test_a_refused_pickle_is_told_with_its_reason_and_a_remedy(file: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": trained().state_dict(), "x": WritesAFile(tmp_path / "ran")}, file)

    with pytest.raises(
        DataFormatError,
        match=r"cannot be read without executing code: its pickle asks for \S+\.system, and only "
        r"tensors and plain values are read\. Get the weights as \.safetensors",
    ):
        load_weights(net(), file)


def test_tensors_of_a_model_share_nothing_with_the_file(file: Path) -> None:
    model = net()
    torch.save(trained().state_dict(), file)
    load_weights(model, file)
    weight: Tensor = model.fc.weight.detach().clone()

    file.write_bytes(b"\0" * file.stat().st_size)  # tensors were read from it by mapping

    assert torch.equal(model.fc.weight, weight)
