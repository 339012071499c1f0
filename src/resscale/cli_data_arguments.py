"""The arguments of `resscale pack`, `resscale index` and `resscale inspect`; argparse only."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from resscale.errors import UserInputError, nearest

_PACK_EXAMPLES = """examples:
  resscale pack digits shards/digits
  resscale pack idx /usr/share/datasets/fashion-mnist shards/fashion --classes fashion-mnist
  resscale pack cifar10 cifar-10-python.tar.gz shards/cifar10 --format png
  resscale pack imagefolder photos shards/photos --resize 256
  resscale pack imagenet /data/ILSVRC2012 shards/imagenet --resize 512 --processes 16
  resscale pack imagenet /data/ILSVRC2012 shards/imagenet --resize 512 --part 0/16

`resscale pack SOURCE --help` shows a source's options. A packing that was stopped goes on when
the same command is given again. With --part, several machines pack one data set together
(slurm/pack.sbatch); the part that ends last writes the manifest."""
CIFAR_KINDS = ("cifar10", "cifar100")
_SOURCE_EXAMPLES = {
    "imagenet": "resscale pack imagenet /data/ILSVRC2012 shards/imagenet --resize 512",
    "imagefolder": "resscale pack imagefolder photos shards/photos --resize 256",
    "idx": "resscale pack idx fashion-mnist shards/fashion --classes fashion-mnist",
    "cifar10": "resscale pack cifar10 cifar-10-python.tar.gz shards/cifar10 --format png",
    "cifar100": "resscale pack cifar100 cifar-100-python.tar.gz shards/cifar100 --format png",
    "digits": "resscale pack digits shards/digits",
}
_INDEX_EXAMPLES = """examples:
  resscale index 'shards/train-{000000..000099}.tar' --classes names.txt
  resscale index shards/train
  resscale index shards/train --verify
  resscale index 's3://bucket/train-{000..999}.tar' --out index/train

Remote shards are read by ranges where that is quicker than reading them whole. Their manifest and
indices go beside them (s3, gs), or with --out into a local folder that --data.train takes."""
_INSPECT_EXAMPLES = """examples:
  resscale inspect shards/digits/train
  resscale inspect shards/photos/train --check --out photos.png"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one `UserInputError` with the nearest valid name."""

    def error(self, message: str) -> NoReturn:
        """Raise in place of printing the usage and leaving."""
        hint = ""
        if match := re.search(r"invalid choice: '([^']*)'", message):
            hint = nearest(match[1], self._choices())
        elif message.startswith("unrecognized arguments:"):
            option = message.split()[2].partition("=")[0]
            known = self._options()
            # A source's own options are not another's.
            elsewhere = f" Other sources have {option}, this one has not."
            hint = elsewhere if option in known else nearest(option, known)
        raise UserInputError(f"{message}.{hint} See `{self.prog} --help`.")

    def _choices(self) -> list[str]:
        return [str(choice) for action in self._actions for choice in action.choices or ()]

    def _options(self) -> list[str]:
        options = [option for action in self._actions for option in action.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                options += [o for parser in action.choices.values() for o in parser._options()]
        return options


def parse(parser: Parser, argv: list[str]) -> argparse.Namespace | int:
    """Return the arguments, or the exit status where `--help` has said all there is to do."""
    try:
        return parser.parse_args(argv)
    except SystemExit as leaving:
        return int(leaving.code or 0)


def pack_parser() -> Parser:
    """Return the parser of `resscale pack`."""
    parser = _parser("pack", "Write a data set as WebDataset shards.", _PACK_EXAMPLES)
    sources = parser.add_subparsers(dest="kind", metavar="SOURCE", required=True)
    _add_source(sources, "imagenet", "ILSVRC 2012: the downloaded tars or the extracted folders")
    _add_source(sources, "imagefolder", "a tree with a folder per class")
    _add_source(sources, "idx", "MNIST-format files (MNIST, Fashion-MNIST)")
    _add_source(sources, "cifar10", "CIFAR-10: an archive as downloaded, or its extracted folder")
    _add_source(sources, "cifar100", "CIFAR-100 likewise, with its 100 fine labels")
    _add_source(sources, "digits", "the 1,797 embedded handwritten digits")
    return parser


def _add_source(sources: argparse._SubParsersAction[Parser], kind: str, text: str) -> None:
    parser = sources.add_parser(
        kind,
        help=text,
        description=f"Pack {text} into OUT/<split>/.",
        epilog=f"example:\n  {_SOURCE_EXAMPLES[kind]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if kind != "digits":
        place = "folder or archive" if kind in CIFAR_KINDS else "folder"
        parser.add_argument("source", metavar="SOURCE", help=f"{place} of the data set")
    parser.add_argument("out", metavar="OUT", help="folder for the splits' folders of shards")
    add = parser.add_argument
    add(
        "--samples_per_shard",
        type=_positive,
        default=1000,
        metavar="N",
        help="at most (%(default)s)",
    )
    add("--shard_mb", type=float, default=256.0, metavar="MB", help="at most, of source (256)")
    add("--seed", type=int, default=0, help="of the shuffle of all splits (%(default)s)")
    add("--limit", type=_positive, metavar="N", help="samples per split, taken after the shuffle")
    add("--processes", type=_positive, metavar="N", help="workers (one per CPU core)")
    add("--part", metavar="I/N", help="part I of N, from 0; other parts may run on other nodes")
    add("--quiet", action="store_true", help="print the summary only")
    if kind in ("imagenet", "imagefolder"):
        add(
            "--resize", type=_positive, metavar="PIXELS", help="bring the shorter side down to this"
        )
        add("--quality", type=int, default=90, help="JPEG quality of resized images (%(default)s)")
        add(
            "--check",
            choices=("full", "header", "none"),
            default="full",
            help="decode each image, read its header, or trust it (%(default)s)",
        )
    else:
        add("--format", choices=("jpg", "png"), default="jpg", help="png is lossless (jpg)")
        add("--quality", type=int, default=100, help="of jpg (%(default)s)")
    if kind == "imagefolder":
        add("--split", default="train", metavar="NAME", help="of a tree without splits (train)")
    if kind == "imagenet":
        add("--val_labels", metavar="FILE", help="wnid per line, or `name wnid`: for the devkit")
    if kind == "idx":
        add("--classes", metavar="FILE", help="class names, one per line; or `fashion-mnist`")


def index_parser() -> Parser:
    """Return the parser of `resscale index`."""
    parser = _parser("index", "Index shards that another tool wrote.", _INDEX_EXAMPLES)
    parser.add_argument(
        "shards",
        nargs="+",
        metavar="SHARDS",
        help="tars: paths or addresses, {a..b} or * patterns; or a folder",
    )
    parser.add_argument("--classes", metavar="FILE", help="class names, one per line, by label")
    parser.add_argument("--verify", action="store_true", help="check sizes and SHA-256 instead")
    parser.add_argument(
        "--out", metavar="DIR", help="folder for manifest and indices (the shards')"
    )
    parser.add_argument(
        "--checksums",
        action=argparse.BooleanOptionalAction,
        help="read shards whole for their SHA-256 (local ones: yes)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a manifest of another command"
    )
    parser.add_argument(
        "--processes", type=_positive, metavar="N", help="workers (one per CPU core)"
    )
    return parser


def inspect_parser() -> Parser:
    """Return the parser of `resscale inspect`."""
    parser = _parser("inspect", "Show what shards hold.", _INSPECT_EXAMPLES)
    parser.add_argument(
        "shards", metavar="SHARDS", help="folder or address of shards, a pattern, or a manifest"
    )
    parser.add_argument("--check", action="store_true", help="decode all samples, list bad ones")
    parser.add_argument(
        "--images", type=_positive, default=256, help="decode so many (%(default)s)"
    )
    parser.add_argument("--out", metavar="PNG", help="the contact sheet (in this folder)")
    parser.add_argument("--seed", type=int, default=0, help="of what is sampled (%(default)s)")
    parser.add_argument(
        "--processes", type=_positive, metavar="N", help="workers (one per CPU core)"
    )
    return parser


def _parser(command: str, description: str, examples: str) -> Parser:
    return Parser(
        prog=f"resscale {command}",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _positive(text: str) -> int:
    """Read a whole number above 0, as an argument's type."""
    if (number := int(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return number


_positive.__name__ = "int"  # what argparse calls a value that is no number
