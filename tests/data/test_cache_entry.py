"""Names in the cache folder: one per address and version, and read back as what they are."""

from pathlib import Path

from resscale.data.cache_entry import (
    CacheSource,
    boot_mark,
    file_system_type,
    host_for_parts,
    list_entries,
)

A = CacheSource("https://host/one/train-000000.tar", 5, "v1")


def test_the_key_is_of_the_whole_address_the_size_and_the_version() -> None:
    others = [
        CacheSource("https://host/two/train-000000.tar", 5, "v1"),  # the same name elsewhere
        CacheSource("https://host/one/train-000000.tar?key=1", 5, "v1"),
        CacheSource("https://host/one/train-000000.tar", 6, "v1"),
        CacheSource("https://host/one/train-000000.tar", 5, "v2"),
    ]
    assert len({A.key, *(other.key for other in others)}) == 5
    assert CacheSource(A.url, 5, "v1", "00").key == A.key
    assert A.file_name == f"{A.key}-train-000000.tar"


def test_names_that_mean_something_to_a_file_system_or_to_the_cache_are_changed() -> None:
    odd = CacheSource("https://host/%2F..%2Fpasswd x.part?sig=a/b", 1, "")
    assert "/" not in odd.file_name
    assert not odd.file_name.endswith(".part")


def test_entries_are_listed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / A.file_name).write_bytes(b"12345")
    (tmp_path / A.part_name()).write_bytes(b"12")
    (tmp_path / A.part_name("node-7")).write_bytes(b"123456789")
    for other in (".room.lock", "0123.live", "0123.needs", "notes.txt", ".0123"):
        (tmp_path / other).write_bytes(b"1")
    found = sorted((e.path.name, e.key, e.bytes, e.is_part) for e in list_entries(tmp_path))
    assert found == sorted(
        [
            (A.file_name, A.key, 5, False),
            (A.part_name(), A.key, 5, True),  # of 5 bytes in the end
            (A.part_name("node-7"), A.key, 9, True),  # larger than it should be
        ]
    )


def test_the_file_system_of_the_longest_mount_counts(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/sda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n"
        "tmpfs /home/fast tmpfs rw 0 0\nserver:/x /a\\040b lustre rw 0 0\n"
    )
    kinds = {
        where: file_system_type(Path(where), mounts)
        for where in ("/srv/x", "/home/me/cache", "/home/fast/cache", "/homes", "/a b/c")
    }
    assert kinds == {
        "/srv/x": "ext4",
        "/home/me/cache": "nfs4",
        "/home/fast/cache": "tmpfs",
        "/homes": "ext4",
        "/a b/c": "lustre",
    }
    assert file_system_type(Path("/srv"), tmp_path / "none") == ""
    assert host_for_parts(tmp_path) == ""  # tests run on a local disk


def test_a_start_of_the_machine_has_a_name(tmp_path: Path) -> None:
    (tmp_path / "boot_id").write_text("12-ab\n")
    assert boot_mark(tmp_path / "boot_id") == "boot-12-ab"
    # Where the system tells none, nothing of another process is gone on with.
    assert boot_mark(tmp_path / "none") == boot_mark(tmp_path / "none")
    assert boot_mark(tmp_path / "none") != boot_mark(tmp_path / "neither")
