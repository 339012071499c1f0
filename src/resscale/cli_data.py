"""The commands `resscale pack`, `resscale index` and `resscale inspect`.

What they need is imported when they run, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from resscale.cli_data_arguments import (
    CIFAR_KINDS,
    index_parser,
    inspect_parser,
    pack_parser,
    parse,
)
from resscale.errors import DataFormatError

if TYPE_CHECKING:
    from resscale.data.manifest import Manifest
    from resscale.data.pack import Packed, PartPacked
    from resscale.data.pack_part import Part
    from resscale.data.pack_plan import PackOptions
    from resscale.data.pack_samples import Split

INTERRUPTED = 130  # what shells report for a process that Ctrl-C ended
_BYTES_PER_MB = 1_000_000


def run_pack(argv: list[str]) -> int:
    """Run `resscale pack` with these arguments; return the exit status.

    Raises:
        UserInputError: wrong arguments, or a source or target that cannot be used.
    """
    arguments = parse(pack_parser(), argv)
    if isinstance(arguments, int):
        return arguments
    from resscale.data.pack import Packed, pack_splits
    from resscale.data.pack_part import WHOLE, Part

    options = _pack_options(arguments)
    part = WHOLE if arguments.part is None else Part.parse(arguments.part)
    say = _say if not arguments.quiet else lambda line: None
    say(f"Reading {getattr(arguments, 'source', None) or 'the embedded digits'} ...")
    try:
        splits = _splits(arguments)
        packed = pack_splits(
            splits, Path(arguments.out), options, f"resscale pack {arguments.kind}", say, part
        )
    except KeyboardInterrupt:
        _say("Stopped. What is finished is kept: the same command goes on from there.")
        return INTERRUPTED
    for split in packed:
        print(_summary(split, part) if isinstance(split, Packed) else _part_summary(split))
    if all(isinstance(split, Packed) for split in packed):
        print(f"Next: resscale inspect {packed[0].folder}")
    return 0


def _pack_options(arguments: argparse.Namespace) -> PackOptions:
    from resscale.data.pack_plan import PackOptions

    return PackOptions(
        samples_per_shard=arguments.samples_per_shard,
        shard_mb=arguments.shard_mb,
        resize=getattr(arguments, "resize", None),
        quality=arguments.quality,
        format=getattr(arguments, "format", "jpg"),
        check=getattr(arguments, "check", "full"),
        seed=arguments.seed,
        limit=arguments.limit,
        processes=_processes(arguments),
    )


def _splits(arguments: argparse.Namespace) -> list[Split]:
    if arguments.kind == "digits":
        from resscale.data.digits import digits_splits

        return digits_splits()
    source = Path(arguments.source).expanduser()
    if arguments.kind == "imagenet":
        from resscale.data.sources_imagenet import imagenet_splits

        return imagenet_splits(source, Path(arguments.val_labels) if arguments.val_labels else None)
    if arguments.kind == "idx":
        from resscale.data.class_names import read_class_names
        from resscale.data.sources_idx import idx_splits

        return idx_splits(source, read_class_names(arguments.classes))
    if arguments.kind in CIFAR_KINDS:
        from resscale.data.sources_cifar import cifar_splits

        return cifar_splits(source, arguments.kind)
    from resscale.data.sources import imagefolder_splits

    return imagefolder_splits(source, arguments.split)


def _summary(packed: Packed, part: Part) -> str:
    manifest = packed.manifest
    line = (
        f"{packed.folder}: {manifest.num_samples:,} samples of {manifest.num_classes:,} classes in "
        f"{_count(len(manifest.shards), 'shard')}, {manifest.num_bytes / _BYTES_PER_MB:,.1f} MB"
    )
    if packed.seconds and not part.is_whole:
        line += f"; all parts are there, {part} ended last after {packed.seconds:,.1f} s"
    elif packed.seconds:
        rate = manifest.num_samples / packed.seconds
        line += f", {packed.seconds:,.1f} s ({rate:,.0f}/s)"
    else:
        line += "; it was there already, with the same options: nothing was written"
    notes = list(packed.notes)
    if packed.left_out:
        notes.insert(0, f"{packed.left_out:,} left out, see {packed.folder}/left_out.jsonl")
    return "\n  ".join([line, *notes])


def _part_summary(packed: PartPacked) -> str:
    missing = _count(packed.missing, "shard")
    return (
        f"{packed.folder}: part {packed.part}, {packed.samples:,} samples in "
        f"{_count(packed.shards, 'shard')}, is done, {packed.seconds:,.1f} s\n"
        f"  {missing} of other parts {'is' if packed.missing == 1 else 'are'} not there yet; the "
        f"part that ends last writes the manifest"
    )


def run_index(argv: list[str]) -> int:
    """Run `resscale index` with these arguments; return the exit status.

    Raises:
        UserInputError: wrong arguments, or shards that cannot be indexed or are not as listed.
    """
    arguments = parse(index_parser(), argv)
    if isinstance(arguments, int):
        return arguments
    from resscale.data.class_names import read_class_names
    from resscale.data.index_shards import index_shards
    from resscale.data.locations import shown
    from resscale.data.shard_patterns import expand_shards
    from resscale.data.verify_shards import folder_of, verify_shards

    processes = _processes(arguments)
    if arguments.verify:
        manifest = verify_shards(folder_of(arguments.shards), processes)
        without = _without_checksum(manifest)
        print(
            f"{shown(manifest.root)}: {_count(len(manifest.shards), 'shard')} as the manifest says"
            + (f"; {without:,} by size alone, without a SHA-256" if without else "")
        )
        return 0
    manifest = index_shards(
        expand_shards(arguments.shards),
        read_class_names(arguments.classes),
        processes,
        force=arguments.force,
        out=arguments.out,
        checksums=arguments.checksums,
    )
    root = shown(manifest.root)
    unlabelled = manifest.num_samples - sum(manifest.class_counts)
    print(
        f"{root}: {manifest.num_samples:,} samples of {manifest.num_classes:,} "
        f"classes in "
        f"{_count(len(manifest.shards), 'shard')}, {manifest.num_bytes / _BYTES_PER_MB:,.1f} MB"
    )
    if manifest.shards_root:
        print(f"  the shards are in {shown(manifest.shards_root)}; use --data.train {root}")
    if unlabelled:
        print("  no labels (.cls): good for predicting, not for training")
    if without := _without_checksum(manifest):
        print(f"  no SHA-256 of {without:,}, checked by size alone; --checksums reads them whole")
    print(f"Next: resscale inspect {root}")
    return 0


def _without_checksum(manifest: Manifest) -> int:
    from resscale.data.shard_table import UNKNOWN_SHA256

    return int((manifest.table.sha256 == UNKNOWN_SHA256.encode()).sum())


def run_inspect(argv: list[str]) -> int:
    """Run `resscale inspect` with these arguments; return the exit status.

    Raises:
        UserInputError: wrong arguments, or no shards there.
        DataFormatError: with --check, some samples are bad.
    """
    arguments = parse(inspect_parser(), argv)
    if isinstance(arguments, int):
        return arguments
    from resscale.data.contact_sheet import write_contact_sheet
    from resscale.data.inspect import describe, inspect_shards
    from resscale.data.locations import is_url, name_of, shown

    processes = _processes(arguments)
    report = inspect_shards(
        arguments.shards, arguments.check, processes, arguments.images, arguments.seed
    )
    print(describe(report))
    root = report.manifest.shards_root or report.manifest.root
    folder = root if is_url(root) else str(Path(root).resolve())
    out = Path(arguments.out or f"{name_of(shown(folder))}-contact-sheet.png")
    write_contact_sheet(report.manifest, out, arguments.seed)
    print(f"contact sheet  {out}")
    if arguments.check and report.bad:
        raise DataFormatError(
            f"{len(report.bad)} of {report.manifest.num_samples} samples of {shown(folder)} are "
            f"bad, as "
            f"listed. Pack the source again (it leaves them out), or mend them."
        )
    return 0


def _processes(arguments: argparse.Namespace) -> int:
    from resscale.data.pack_plan import default_processes

    return int(arguments.processes or default_processes())


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
