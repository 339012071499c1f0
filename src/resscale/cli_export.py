"""The command `resscale export`: weights of a run as one plain file, and a model card beside it.

What it needs is imported when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resscale.cli_data_arguments import Parser, parse
from resscale.errors import UserInputError

if TYPE_CHECKING:
    from resscale.models import ResNet
    from resscale.report.export_net import Architecture
    from resscale.report.export_source import Source

_EXAMPLES = """examples:
  resscale export runs/demo demo.safetensors
  resscale export runs/demo/checkpoints/last.ckpt demo.pth --ema true
  resscale export runs/demo demo.onnx --with_preprocessing true
  resscale export resnet50-0676ba61.pth resnet50.onnx --model resnet50

Beside OUT a model card is written, with the ending .md."""


def export_parser() -> Parser:
    """Return the parser of `resscale export`."""
    parser = Parser(
        prog="resscale export",
        description="Write the weights of a run as a plain file, with a model card beside it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint",
        metavar="CKPT",
        type=Path,
        help="a run directory (its best.ckpt, else its newest whole checkpoint), a checkpoint, a "
        "DeepSpeed folder, or a file of weights",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        type=Path,
        help="the file; its ending says the form: .safetensors, .pth or .onnx",
    )
    flags = {
        "ema": "the averaged weights in place of the raw ones",
        "overwrite": "replace OUT and its card",
        "with_preprocessing": "take uint8 pixels and normalise inside (.onnx)",
    }
    for name, what in flags.items():
        parser.add_argument(f"--{name}", choices=("true", "false"), default="false", help=what)
    parser.add_argument(
        "--image_size",
        metavar="PIXELS",
        type=int,
        help="side of the images (default: the run's evaluation size, or the net's own)",
    )
    group = parser.add_argument_group("where the file does not say its net")
    group.add_argument("--model", metavar="NAME", help="one of `resscale models`")
    group.add_argument("--num_classes", metavar="N", type=int, help="outputs (default: 1000)")
    group.add_argument("--in_channels", metavar="C", type=int, help="channels (default: 3)")
    group.add_argument(
        "--model_options", metavar="YAML", help="other options of the net, as '{shortcut: A}'"
    )
    return parser


def run_export(argv: list[str]) -> int:
    """Run `resscale export` with these arguments; return the exit status.

    Raises:
        UserInputError: wrong arguments, no weights there, weights that do not fit their net, or a
            file that cannot be written.
    """
    arguments = parse(export_parser(), argv)
    if isinstance(arguments, int):
        return arguments
    from resscale.report.card_facts import class_names, data_rows, measured_accuracy, training_rows
    from resscale.report.export import (
        check_destination,
        encode_safetensors,
        sha256,
        write_atomically,
    )
    from resscale.report.export_net import architecture_of, build_net
    from resscale.report.export_source import read_source
    from resscale.report.model_card import Card, ExportedFile, card_path, listed_files, render_card

    out, overwrite, averaged = arguments.out, _is(arguments.overwrite), _is(arguments.ema)
    stated = _stated(arguments)
    check_destination(out, arguments.checkpoint, overwrite=overwrite)
    _check_options(arguments)
    source = read_source(arguments.checkpoint)
    architecture = architecture_of(source, stated, arguments.image_size)
    net = build_net(architecture, source.weights(averaged=averaged), source.path)
    print(_describe(source, architecture, net, averaged), flush=True)
    digest = sha256(encode_safetensors(net))
    others = listed_files(out, digest, overwrite=overwrite)
    content, form = _encode(net, architecture, arguments)
    command = shlex.join(["resscale", "export", *argv])
    file = ExportedFile(out.name, form, len(content), sha256(content), command)
    card = Card(
        architecture=architecture,
        net=net,
        weights="EMA" if averaged else "raw",
        digest=digest,
        files=sorted([file, *others], key=lambda listed: listed.name),
        date=time.strftime("%Y-%m-%d"),
        source=str(source.path),
        accuracy=measured_accuracy(source),
        training=training_rows(source),
        data=data_rows(source),
        classes=class_names(source),
        config=source.config,
    )
    page = render_card(card)
    write_atomically(out, content)
    print(f"wrote {out} ({len(content):,} bytes, SHA-256 {file.sha256})")
    write_atomically(card_path(out), page.encode())
    print(f"wrote {card_path(out)}")
    return 0


def _encode(
    net: ResNet, architecture: Architecture, arguments: argparse.Namespace
) -> tuple[bytes, str]:
    """Return the file's bytes, and its form in words; say how ONNX compares with torch."""
    from resscale.report.export import encode_safetensors, encode_torch

    if arguments.out.suffix == ".safetensors":
        return encode_safetensors(net), "tensors by torchvision's or timm's keys"
    if arguments.out.suffix == ".pth":
        return encode_torch(net), "state dict by torchvision's or timm's keys"
    from resscale.report.onnx_file import CHECKED_BATCHES, OPSET, encode_onnx

    done = encode_onnx(net, architecture, with_preprocessing=_is(arguments.with_preprocessing))
    form = f"ONNX, opset {OPSET}; input {done.takes}"
    if done.comparison is None:
        said = 'not compared with torch, for onnxruntime is missing: pip install -e ".[onnx]"'
    else:
        said = (
            f"onnxruntime and torch differ by at most {done.comparison.largest_difference:.2g} in "
            f"logits of up to {done.comparison.largest_logit:.3g}, on random images in batches of "
            f"{' and '.join(map(str, CHECKED_BATCHES))}"
        )
    print(f"{form.replace('`', '')}\n{said}", flush=True)
    return done.content, form


def _describe(source: Source, architecture: Architecture, net: ResNet, averaged: bool) -> str:
    step = source.state.get("global_step")
    kind = "averaged (EMA)" if averaged else "raw"
    also = "" if averaged or source.averaged is None else "; it has averaged ones too: --ema true"
    return (
        f"weights: {source.path}"
        + (f", step {step:,}" if step is not None else "")
        + f", {kind}{also}\nnetwork: {architecture.name}, "
        f"{sum(p.numel() for p in net.parameters()):,} parameters, "
        f"{architecture.num_classes} classes, {architecture.in_channels} "
        f"channel{'s' if architecture.in_channels > 1 else ''}"
    )


def _check_options(arguments: argparse.Namespace) -> None:
    """Find what the form of the file forbids before anything is read."""
    is_onnx = arguments.out.suffix == ".onnx"
    if _is(arguments.with_preprocessing) and not is_onnx:
        raise UserInputError(
            f"--with_preprocessing true puts the normalisation into an .onnx file, and "
            f"{arguments.out} holds weights alone. Leave it out; the card says mean and std."
        )
    if arguments.image_size is not None and arguments.image_size < 1:
        raise UserInputError(f"--image_size {arguments.image_size} must be at least 1 pixel.")
    if is_onnx:
        from resscale.report.onnx_file import check_packages

        check_packages()


def _stated(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the user says of the net."""
    names = ("model", "num_classes", "in_channels", "model_options")
    stated = {name: getattr(arguments, name) for name in names}
    stated = {name: value for name, value in stated.items() if value is not None}
    if "model_options" in stated:
        import yaml

        try:
            options = yaml.safe_load(stated["model_options"])
        except yaml.YAMLError:
            options = None
        if not isinstance(options, dict):
            raise UserInputError(
                f"--model_options {stated['model_options']} must be a mapping of options to "
                f"values, such as '{{shortcut: A}}'."
            )
        stated["model_options"] = options
    return stated


def _is(flag: str) -> bool:
    return flag == "true"
