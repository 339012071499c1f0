"""Nothing reads a value off the device at each step: a GPU would have to be waited for.

On a CPU a read costs nothing, so reads are counted: by the methods of a tensor that give a value
to Python, and by the operation that all of them but `tolist` end in, which C++ calls too.
"""

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resscale.cli import main

pytestmark = pytest.mark.filterwarnings(
    "ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)
# Everything that acts at each step, in one interval of an epoch without evaluation.
CONFIG = """
model: {model: resnet8_cifar, num_classes: 10, mean: [0.3], std: [0.4]}
data: {train: builtin:digits/train, channels: 1, image_size: 8, train_crop: pad, pad: 1, flip: true,
       global_batch_size: 32, micro_batch_size: 16, num_workers: 0, log_sample_ids: true}
trainer: {accelerator: cpu, max_epochs: 1, log_every_n_steps: 1000, gradient_clip_val: 1.0}
monitor: {peak_flops_per_s: 1.0e+12}
ema: {decay: 0.9}
"""
# Everything that changes images and targets on the device.
AUGMENTED = (
    *("--model.policy.name=rand-m7-mstd0.5-inc1", "--model.policy.interpolation=bilinear"),
    *("--model.erasing.probability=0.5", "--model.erasing.value=noise"),
    *("--model.mixing.mixup_alpha=0.2", "--model.mixing.cutmix_alpha=1"),
    *("--model.loss=bce", "--model.target_threshold=0.2"),
)
METHODS = ("item", "cpu", "tolist", "__float__", "__int__", "__bool__", "__index__")
READS = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default"}
Reads = Counter[str]


class CountOperations(TorchDispatchMode):
    """Counts the operations that hand a value to the host."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if str(func) in READS:
            self.reads[f"{func} {caller()}"] += 1
        return func(*args, **(kwargs or {}))


def caller() -> str:
    """Where a read comes from: the innermost line that is neither torch's nor this file's."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__:
            return f"{Path(frame.filename).name}:{frame.lineno}"
    return "unknown"


def count_methods(monkeypatch: pytest.MonkeyPatch, reads: Reads) -> None:
    """Count calls of the methods that give a tensor's value to Python, and moves to the host."""

    def counted(name: str, honest: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            reads[f"{name} {caller()}"] += 1
            return honest(self, *args, **kwargs)

        return method

    for name in METHODS:
        monkeypatch.setattr(Tensor, name, counted(name, getattr(Tensor, name)))
    move = Tensor.to

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        target = args[0] if args else kwargs.get("device")
        if isinstance(target, str) and target.startswith("cpu"):
            reads[f"to {caller()}"] += 1
        return move(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", to)


def reads_of_a_run(folder: Path, steps: int, precision: str, *more: str) -> Reads:
    """Train so many optimizer steps of two micro-batches; return what was read, by place."""
    (folder / "tiny.yaml").write_text(CONFIG)
    arguments = ["--config", f"{folder}/tiny.yaml", "--run_dir", f"{folder}/run-{steps}"]
    arguments += ["--trainer.limit_train_batches", str(2 * steps)]
    arguments += ["--trainer.precision", precision, *more]
    reads: Reads = Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESSCALE_RUN_DIR", "")
        count_methods(patch, reads)
        with CountOperations(reads):
            assert main(["fit", *arguments]) == 0
    return reads


def test_reads_are_counted_with_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: Reads = Counter()
    value = torch.tensor([1.0])
    with pytest.MonkeyPatch.context() as patch, CountOperations(reads):
        count_methods(patch, reads)
        assert value.item() == float(value) == value.tolist()[0]
        assert bool(value)
        value.cpu()
        value.to("cpu")
        torch.nonzero(value)
    methods = Counter(key.partition(" ")[0] for key in reads.elements())
    expected = {"item": 1, "__float__": 1, "tolist": 1, "__bool__": 1, "cpu": 1, "to": 1}
    assert {name: methods[name] for name in expected} == expected
    assert methods["aten._local_scalar_dense.default"] == 3  # item, float, bool
    assert methods["aten.nonzero.default"] == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_more_steps_of_an_interval_read_no_more(tmp_path: Path, precision: str) -> None:
    few, many = (reads_of_a_run(tmp_path, steps, precision) for steps in (3, 13))
    assert few, "the interval's end reads its sums"
    assert many - few == Counter()


def test_augmentation_reads_nothing(tmp_path: Path) -> None:
    few, many = (reads_of_a_run(tmp_path, steps, "32-true", *AUGMENTED) for steps in (3, 13))
    assert many - few == Counter()
