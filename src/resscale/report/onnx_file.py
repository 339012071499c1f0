"""A net as an ONNX file, compared with torch by onnxruntime before it is handed out."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resscale.errors import ResscaleError, UserInputError
from resscale.models import ResNet
from resscale.report.export_net import Architecture, Preparation
from resscale.training.classifier import ImageClassifier

OPSET = 18
"""The exporter's own; it cannot write an older one for these nets, and newer ones add nothing."""

INPUT, OUTPUT = "images", "logits"
CHECKED_BATCHES = (1, 3)
# Of the largest logit. Another order of the sums gives 1e-6, a wrong operator the order of 1.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Comparison:
    """onnxruntime against torch, over the logits of some random images, as absolute values."""

    largest_difference: float
    largest_logit: float


@dataclass(frozen=True)
class OnnxFile:
    """The encoded file.

    Args:
        content: the bytes.
        takes: its input in words.
        comparison: with torch; None: onnxruntime is missing.
    """

    content: bytes
    takes: str
    comparison: Comparison | None


class Prepared(nn.Module):
    """Normalisation and net in one: pixels uint8 `(B, C, H, W)` to logits `(B, K)`.

    Args:
        net: the net.
        in_channels: channels of the pixels.
        preparation: mean and std of pixels in 0 to 1.
    """

    def __init__(self, net: ResNet, in_channels: int, preparation: Preparation) -> None:
        super().__init__()
        # The classifier normalises in training and evaluation; what it does is what is exported.
        self.classifier = ImageClassifier(
            net,
            in_channels=in_channels,
            mean=preparation.mean,
            std=preparation.std,
            channels_last=False,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.classifier(self.classifier.prepare(images))
        return logits


def check_packages() -> None:
    """Find missing packages before anything is read.

    Raises:
        UserInputError: onnx or onnxscript is missing.
    """
    missing = [name for name in ("onnx", "onnxscript") if not _is_installed(name)]
    if missing:
        raise UserInputError(
            f"an .onnx file needs the package{'s' if len(missing) > 1 else ''} "
            f'{" and ".join(missing)}: pip install -e ".[onnx]"'
        )


def encode_onnx(net: ResNet, architecture: Architecture, *, with_preprocessing: bool) -> OnnxFile:
    """Return the net as ONNX of opset 18: any batch, images of the architecture's fixed size.

    Args:
        net: in evaluation mode.
        architecture: of the net.
        with_preprocessing: take uint8 pixels and normalise them inside, in place of float32 images
            that are normalised already.

    Raises:
        UserInputError: mean and std are wanted and not known.
        ResscaleError: onnxruntime computes other logits than torch.
    """
    a = architecture
    module: nn.Module = net
    if with_preprocessing:
        if a.preparation is None:
            raise UserInputError(
                "--with_preprocessing true needs the mean and std that the net was trained with, "
                "and a file of weights alone does not say them: export a checkpoint of `resscale "
                "fit`, or leave it out."
            )
        module = Prepared(net, a.in_channels, a.preparation).eval()
    content = _export(module, _random_images(2, a, with_preprocessing))
    pixels = "uint8, 0 to 255" if with_preprocessing else "float32, normalised"
    return OnnxFile(
        content=content,
        takes=f"`{INPUT}` {pixels}, (batch, {a.in_channels}, {a.image_size}, {a.image_size})",
        comparison=_compare(content, module, a, with_preprocessing),
    )


def _export(module: nn.Module, example: Tensor) -> bytes:
    # Two images in the example: a batch of one would be taken for a constant.
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None
    model: Any = program.model_proto
    for node in model.graph.node:
        # Where each node comes from, down to the folders of this machine: nobody else's business.
        node.ClearField("metadata_props")
    content: bytes = model.SerializeToString()
    return content


def _compare(
    content: bytes, module: nn.Module, architecture: Architecture, with_preprocessing: bool
) -> Comparison | None:
    """Compare with torch; None where onnxruntime is missing.

    Raises:
        ResscaleError: they differ by more than the order of sums explains.
    """
    if not _is_installed("onnxruntime"):
        return None
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    # As torch was told: several runs on one machine must not fight for its cores.
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors: its remarks on the machine are no business of ours
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    comparisons = []
    for count in CHECKED_BATCHES:
        images = _random_images(count, architecture, with_preprocessing)
        with torch.no_grad():
            expected = module(images)
        found = torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])
        same_shape = found.shape == expected.shape
        difference = float((found - expected).abs().max()) if same_shape else math.inf
        logit = float(expected.abs().max())
        # Written so that a difference that is no number counts as one.
        if not difference <= _TOLERANCE * max(1.0, logit):
            raise ResscaleError(
                f"onnxruntime and torch differ by {difference:.2g} in logits of up to {logit:.3g}, "
                f"for a batch of {count}: the ONNX file would be wrong, and is not written."
            )
        comparisons.append(Comparison(difference, logit))
    return max(comparisons, key=lambda one: one.largest_difference)


def _random_images(count: int, architecture: Architecture, as_pixels: bool) -> Tensor:
    """Return images that are the same at each call: uint8 or float32 (count, C, H, W)."""
    a = architecture
    generator = torch.Generator().manual_seed(count)
    shape = (count, a.in_channels, a.image_size, a.image_size)
    if as_pixels:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks away from the user; what fails raises."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
