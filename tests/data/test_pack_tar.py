"""The tar of a shard: webdataset's own bytes, and an index that needs no second look."""

import hashlib
import io
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.writer import TarWriter

from resscale.data.pack_tar import ShardWriter, tar_header
from resscale.data.shard_index import ShardIndex, build_shard_index

SAMPLES = st.lists(
    st.tuples(
        st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=90),
        st.sampled_from(["jpg", "png", "webp", "bmp"]),
        st.binary(max_size=3000),
        st.integers(0, 10**6),
    ),
    max_size=8,
    unique_by=lambda sample: sample[0],
)


def written(samples: list[tuple[str, str, bytes, int]]) -> tuple[bytes, ShardWriter]:
    file = io.BytesIO()
    writer = ShardWriter(file)
    for sample in samples:
        writer.add(*sample)
    writer.finish()
    return file.getvalue(), writer


@given(SAMPLES)
def test_bytes_are_those_of_webdatasets_writer(samples: list[tuple[str, str, bytes, int]]) -> None:
    expected = io.BytesIO()
    fixed = {"user": "root", "group": "root", "mode": 0o644, "mtime": 0}
    with TarWriter(expected, encoder=False, **fixed) as theirs:
        for key, extension, image, label in samples:
            theirs.write({"__key__": key, extension: image, "cls": b"%d" % label})
    raw, writer = written(samples)
    assert raw == expected.getvalue()
    assert (writer.size, writer.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert len(writer) == len(samples)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_index_is_what_a_scan_of_the_file_finds(tmp_path: Path, count: int) -> None:
    # 'bmp' stands before 'cls' in the tar, 'jpg' behind it
    samples = [
        (f"key{n}", ("bmp", "jpg")[n % 2], bytes([n]) * (500 * n + 1), n + 3) for n in range(count)
    ]
    raw, writer = written(samples)
    (tmp_path / "a.tar").write_bytes(raw)
    found, scanned = writer.index(), build_shard_index(tmp_path / "a.tar")
    for name in ShardIndex.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(scanned, name))
        assert getattr(found, name).dtype == getattr(scanned, name).dtype
    for offset, size, sample in zip(found.offsets, found.sizes, samples, strict=True):
        assert raw[offset : offset + size] == sample[2]


@pytest.mark.parametrize(("name", "size"), [("a" * 101, 1), ("", 1), ("a.jpg", 8**11)])
def test_what_a_header_has_no_place_for_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="no place in a tar header"):
        tar_header(name, size)
