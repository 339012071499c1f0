"""Where offset indices and a manifest are written: a local folder, or one of an object store."""

from __future__ import annotations

from pathlib import Path

from resscale.data.locations import join, local_path, shown, without_secrets
from resscale.data.manifest import MANIFEST_NAME, Manifest
from resscale.data.pack_shard import writing_to
from resscale.data.shard_index import ShardIndex
from resscale.errors import UserInputError

_WRITABLE = ("s3://", "gs://")


def check_place(root: str) -> None:
    """Refuse a place that nothing can be written to, before shards are read for it.

    Raises:
        UserInputError: an address of a protocol that only reads.
    """
    if local_path(root) is None and not root.lower().startswith(_WRITABLE):
        raise UserInputError(
            f"{shown(root)} cannot be written to: index files beside the shards need s3:// or "
            f"gs://. "
            f"Name a local folder for them with --out DIR; its manifest will say where the shards "
            f"are."
        )


def save_index(root: str, name: str, index: ShardIndex) -> None:
    """Write an offset index as the file `name` of a folder.

    Raises:
        UserInputError: it cannot be written.
    """
    if (folder := local_path(root)) is not None:
        with writing_to(folder):
            index.save(folder / name)
    else:
        _put(join(root, name), index.to_bytes())


def save_manifest(root: str, manifest: Manifest) -> None:
    """Write a manifest into a folder.

    Raises:
        UserInputError: it cannot be written.
    """
    if (folder := local_path(root)) is not None:
        with writing_to(folder):
            manifest.save(folder)
    else:
        _put(join(root, MANIFEST_NAME), manifest.json_text().encode())


def make_folder(root: str) -> None:
    """Make a local folder, those above it too.

    Raises:
        UserInputError: it cannot be made.
    """
    if (folder := local_path(root)) is not None:
        with writing_to(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)


def _put(url: str, content: bytes) -> None:
    """Write an object; it appears as a whole or not at all."""
    from resscale.data.remote import get_default
    from resscale.data.remote_files import FILE_SYSTEMS

    system = FILE_SYSTEMS.get(url, get_default())
    try:
        system.pipe_file(url, content)
    except Exception as error:  # every library has errors of its own
        said = without_secrets(f"{type(error).__name__}: {error}")
        raise UserInputError(
            f"{shown(url)} cannot be written ({said}). Get the right to, or "
            f"name a local folder with --out DIR."
        ) from error
