"""The command `resscale models`: a table of the named nets."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from resscale.cli_data_arguments import Parser, parse
from resscale.errors import UserInputError, nearest

if TYPE_CHECKING:
    from resscale.models.variants import Variant

_EXAMPLES = """examples:
  resscale models
  resscale models 'resnet*_cifar'

GMACs are billions of multiply-accumulates of one image's forward pass at the size in the column
before. CIFAR nets are counted with 10 classes, the others with 1000."""
_ROW = "{:<30} {:>13} {:>6} {:>6} {:<10} {}"
_CIFAR_SIZE = 32


def run_models(argv: list[str]) -> int:
    """Run `resscale models` with these arguments; return the exit status.

    Raises:
        UserInputError: wrong arguments, a pattern that no name matches, or a CIFAR net of a depth
            against the rule.
    """
    arguments = parse(models_parser(), argv)
    if isinstance(arguments, int):
        return arguments
    from resscale.models.variants import find_variant, list_models

    names = list_models(arguments.pattern)
    if not names and re.fullmatch(r"\w+_cifar", arguments.pattern):
        # A depth that follows the rule has no row in the table, and a net all the same.
        find_variant(arguments.pattern)
        names = [arguments.pattern]
    if not names:
        raise UserInputError(
            f"No model matches {arguments.pattern!r}; `resscale models` shows all names, and a "
            f"pattern may hold * and ?.{nearest(arguments.pattern, list_models())}"
        )
    print(_ROW.format("name", "parameters", "pixels", "GMACs", "block", "source"))
    for name in names:
        # One at a time: the largest take a second each.
        print(_row(name, find_variant(name)), flush=True)
    return 0


def _row(name: str, variant: Variant) -> str:
    from resscale.models import count_macs
    from resscale.models.meta import create_on_meta

    net = create_on_meta(name, num_classes=10 if variant.image_size == _CIFAR_SIZE else 1000)
    parameters = sum(p.numel() for p in net.parameters())
    macs = count_macs(net, variant.image_size) / 1e9
    return _ROW.format(
        name,
        f"{parameters:,}",
        variant.image_size,
        _three_digits(macs),
        variant.block,
        variant.source,
    )


def _three_digits(value: float) -> str:
    """Round to hundredths, or thousandths below a tenth: the smallest nets cost 0.04."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def models_parser() -> Parser:
    """Return the parser of `resscale models`."""
    parser = Parser(
        prog="resscale models",
        description="List the named nets: parameters, cost, block and source of each.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "pattern", nargs="?", default="*", help="names, such as 'resnext*' (default: all)"
    )
    return parser
