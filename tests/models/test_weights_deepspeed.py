"""Checkpoints that DeepSpeed itself wrote on two ranks, see fixtures/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from resscale.errors import DataFormatError, UserInputError
from resscale.models import ResNet, ResNetOptions
from resscale.models.weights import load_weights
from resscale.models.weights_deepspeed import _join_stage_1_2, _Shares, read_deepspeed

FIXTURES = Path(__file__).parent / "fixtures"
CASES = (
    "zero0", "zero0_bf16", "zero1", "zero1_bf16", "zero2", "zero2_bf16", "zero3", "zero3_bf16",
)  # fmt: skip
# Rebuilt from the ranks' shares; the others are in the module's own file as they are.
JOINED = ("zero1_bf16", "zero2_bf16", "zero3", "zero3_bf16")


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    with tarfile.open(FIXTURES / "deepspeed.tar.xz") as archive:
        archive.extractall(tmp_path / "c", filter="data")
    return tmp_path / "c"


def tiny() -> ResNet:
    return ResNet("basic", (1,), (4,), num_classes=3, options=ResNetOptions(stem="cifar"))


def expected(folder: Path) -> dict[str, Tensor]:
    """What DeepSpeed's own safe_get_full_fp32_param gathered when the checkpoint was saved."""
    return torch.load(folder / "expected.pt", weights_only=True)


def assert_is(model: ResNet, weights: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert set(state) == set(weights)
    for key, value in state.items():
        assert torch.equal(value, weights[key].to(value.dtype)), key


@pytest.mark.parametrize("case", CASES)
def test_every_stage_gives_the_weights_that_deepspeed_had(checkpoints: Path, case: str) -> None:
    model = tiny()

    loaded = load_weights(model, checkpoints / case)

    assert_is(model, expected(checkpoints / case))
    assert loaded.entry == ("fp32 master weights" if case in JOINED else "module")
    # 3 convolutions, 3 BNs of 5, fc's 2.
    assert loaded.num_tensors == 3 + 3 * 5 + 2


@pytest.mark.parametrize("case", ["zero1_bf16", "zero2_bf16", "zero3_bf16"])
def test_master_weights_are_finer_than_the_modules_own(checkpoints: Path, case: str) -> None:
    weight = read_deepspeed(checkpoints / case)[0]["fc.weight"]

    assert weight.dtype == torch.float32
    assert not torch.equal(weight, weight.to(torch.bfloat16).float())


def test_zero_0_in_bfloat16_gives_the_modules_weights(checkpoints: Path) -> None:
    # Its fp32 copies have no names in the file.
    assert read_deepspeed(checkpoints / "zero0_bf16")[0]["fc.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("case", ["zero2", "zero3"])
def test_the_tags_folder_or_a_file_of_it_or_lightnings_folder_name_the_same_checkpoint(
    checkpoints: Path, case: str
) -> None:
    folder = checkpoints / case
    lightning = checkpoints / "epoch=1.ckpt"
    shutil.copytree(folder / "step2", lightning / "checkpoint")

    for path in (folder / "step2", next((folder / "step2").glob("*model_states.pt")), lightning):
        model = tiny()
        load_weights(model, path)
        assert_is(model, expected(folder))


def test_the_newest_tag_is_taken(checkpoints: Path) -> None:
    folder = checkpoints / "zero3"
    shutil.copytree(checkpoints / "zero2" / "step2", folder / "step3")
    (folder / "latest").write_text("step3\n")
    model = tiny()

    load_weights(model, folder)

    assert_is(model, expected(checkpoints / "zero2"))


@pytest.mark.parametrize("name", ["step9", "", "../zero2/step2", "."])
def test_a_tag_that_is_not_there_or_elsewhere_is_refused(checkpoints: Path, name: str) -> None:
    (checkpoints / "zero3" / "latest").write_text(name)

    with pytest.raises(DataFormatError, match=r"latest names the checkpoint .* no such folder"):
        read_deepspeed(checkpoints / "zero3")


@pytest.mark.parametrize("case", JOINED)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_share_is_said(checkpoints: Path, case: str, rank: int) -> None:
    (share,) = (checkpoints / case / "step2").glob(f"*zero_pp_rank_{rank}_*optim_states.pt")
    share.unlink()

    with pytest.raises(DataFormatError, match="copy all"):
        read_deepspeed(checkpoints / case)


def test_without_any_share_half_precision_weights_are_the_modules(checkpoints: Path) -> None:
    for share in (checkpoints / "zero1_bf16" / "step2").glob("*optim_states.pt"):
        share.unlink()

    tensors, entry = read_deepspeed(checkpoints / "zero1_bf16")

    assert (entry, tensors["fc.weight"].dtype) == ("module", torch.bfloat16)


def test_stage_3_without_any_share_has_no_weights(checkpoints: Path) -> None:
    for share in (checkpoints / "zero3" / "step2").glob("*optim_states.pt"):
        share.unlink()

    with pytest.raises(DataFormatError, match=r"has the fp32 weights of 0 ranks.*copy all"):
        read_deepspeed(checkpoints / "zero3")


def test_a_rank_of_an_absurd_number_does_not_hang(checkpoints: Path) -> None:
    folder = checkpoints / "zero3" / "step2"
    name = "zero_pp_rank_{}_mp_rank_00_model_states.pt"
    (folder / name.format(1)).rename(folder / name.format(10**15))

    with pytest.raises(DataFormatError, match="lacks a file of rank 1,"):
        read_deepspeed(checkpoints / "zero3")


def test_a_missing_model_file_of_stage_3_is_said(checkpoints: Path) -> None:
    folder = checkpoints / "zero3" / "step2"
    (folder / "zero_pp_rank_0_mp_rank_00_model_states.pt").unlink()

    with pytest.raises(DataFormatError, match="lacks a file of rank 0"):
        read_deepspeed(folder)


def test_shares_without_a_model_file_are_refused(checkpoints: Path) -> None:
    folder = checkpoints / "zero2" / "step2"
    (folder / "mp_rank_00_model_states.pt").unlink()

    with pytest.raises(DataFormatError, match=r"no \*_model_states\.pt; copy all files"):
        read_deepspeed(folder)


def test_tensor_parallel_checkpoints_are_refused(checkpoints: Path) -> None:
    folder = checkpoints / "zero2" / "step2"
    shutil.copy(folder / "mp_rank_00_model_states.pt", folder / "mp_rank_01_model_states.pt")

    with pytest.raises(UserInputError, match="belongs to a tensor-parallel checkpoint"):
        read_deepspeed(folder)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a model file says, as another version of DeepSpeed might."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_shapes_that_do_not_use_up_the_shares_are_refused(checkpoints: Path) -> None:
    folder = checkpoints / "zero3" / "step2"
    for path in folder.glob("*model_states.pt"):
        rewrite(path, lambda content: content["param_shapes"][1].popitem())  # fc.bias

    with pytest.raises(DataFormatError, match=r"cannot be put together \(ValueError: the shapes"):
        read_deepspeed(folder)


def test_a_cut_at_the_wrong_place_is_found_by_the_modules_own_weights(checkpoints: Path) -> None:
    path = checkpoints / "zero1_bf16" / "step2" / "mp_rank_00_model_states.pt"
    # Both convolutions of the block are 4×4×3×3: in the wrong order only their values tell.
    rewrite(path, lambda content: content["param_shapes"][0].move_to_end("layer1.0.conv1.weight"))

    with pytest.raises(DataFormatError, match=r"conv\d.weight differs from the module's.*zero_to_"):
        read_deepspeed(path.parent)


@pytest.mark.parametrize(("share_of_largest", "agrees"), [(2**-9, True), (2**-5, False)])
def test_master_weights_may_differ_from_the_modules_by_rounding_only(
    checkpoints: Path, share_of_largest: float, agrees: bool
) -> None:
    path = checkpoints / "zero1_bf16" / "step2" / "mp_rank_00_model_states.pt"

    def shift(content: dict[str, Any]) -> None:
        weight = content["module"]["fc.weight"].float()
        content["module"]["fc.weight"] = weight + share_of_largest * weight.abs().max()

    rewrite(path, shift)

    if agrees:
        assert read_deepspeed(path.parent)[1] == "fp32 master weights"
    else:
        with pytest.raises(DataFormatError, match=r"\(fc\.weight differs from the module's\)"):
            read_deepspeed(path.parent)


def test_a_parameter_with_two_names_is_given_under_both(checkpoints: Path) -> None:
    path = checkpoints / "zero3" / "step2" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    rewrite(path, lambda content: content["shared_params"].update({"other.weight": "fc.weight"}))

    tensors, _ = read_deepspeed(path.parent)

    assert torch.equal(tensors["other.weight"], expected(checkpoints / "zero3")["fc.weight"])


def test_a_parameter_that_no_rank_holds_is_said(checkpoints: Path) -> None:
    path = checkpoints / "zero3" / "step2" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    rewrite(path, lambda content: content["module"].update(ghost=torch.empty(0)))

    with pytest.raises(DataFormatError, match=r"\(ghost is in no rank's share\)"):
        read_deepspeed(path.parent)


@pytest.mark.parametrize(
    ("entry", "value", "reason"),
    [
        ("param_shapes", [["fc.weight"]], "AttributeError: 'list' object"),
        ("param_shapes", None, "TypeError: 'NoneType' object"),
        ("shared_params", ["fc.weight"], "AttributeError: 'list' object"),
        ("module", {"fc.bias": torch.eye(3).to_sparse()}, "NotImplementedError: Could not run"),
    ],
)
def test_content_of_another_kind_is_one_message(
    checkpoints: Path, entry: str, value: object, reason: str
) -> None:
    path = checkpoints / "zero1_bf16" / "step2" / "mp_rank_00_model_states.pt"
    if entry == "module":
        rewrite(path, lambda content: content["module"].update(value))
    else:
        rewrite(path, lambda content: content.update({entry: value}))

    with pytest.raises(DataFormatError, match=rf"cannot be put together \({reason}.*\)\. Convert"):
        read_deepspeed(path.parent)


def test_keys_that_are_no_text_are_left_out(checkpoints: Path) -> None:
    path = checkpoints / "zero2" / "step2" / "mp_rank_00_model_states.pt"
    rewrite(path, lambda content: content["module"].update({7: torch.ones(1)}))

    assert set(read_deepspeed(path.parent)[0]) == set(expected(checkpoints / "zero2"))


def test_unused_elements_behind_a_parameter_are_left_out() -> None:
    # Two ranks hold a's two elements, one unused, b's one and one unused, end to end.
    ranks = [[torch.tensor([1.0, 2.0, -1.0])], [torch.tensor([3.0, -1.0])]]

    weights = _join_stage_1_2(_Shares(2, ranks, [[1, 1]]), [{"a": (2,), "b": (1, 1)}])

    assert weights["a"].tolist() == [1.0, 2.0]
    assert weights["b"].tolist() == [[3.0]]


def test_a_hostile_share_does_not_run(checkpoints: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    (share,) = (checkpoints / "zero3" / "step2").glob("*rank_1*optim_states.pt")
    torch.save({"optimizer_state_dict": Hostile()}, share)

    with pytest.raises(DataFormatError, match=r"asks for \S+\.system"):
        read_deepspeed(checkpoints / "zero3")

    assert not (tmp_path / "ran").exists()


def test_what_the_installed_deepspeed_writes_is_read(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="writes new checkpoints; the fixture has old ones")
    script = FIXTURES / "make_deepspeed_checkpoint.py"
    made = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "new.tar.xz")],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with tarfile.open(tmp_path / "new.tar.xz") as archive:
        archive.extractall(tmp_path / "new", filter="data")

    for case in CASES:
        model = tiny()
        load_weights(model, tmp_path / "new" / case)
        assert_is(model, expected(tmp_path / "new" / case))
