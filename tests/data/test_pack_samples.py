"""Keys are unique, without dots, sort-friendly; the table finds each sample's bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resscale.data.pack_samples import (
    MAX_KEY_LENGTH,
    WHOLE_FILE,
    SampleTable,
    sample_key,
    samples_in_file,
    samples_in_memory,
    unique_keys,
)
from resscale.data.shard_index import split_key
from resscale.errors import DataFormatError


@pytest.mark.parametrize(
    ("class_name", "relative", "key"),
    [
        ("cat", "1.jpg", "cat_1"),
        ("n01440764", "n01440764_10026.JPEG", "n01440764_10026"),
        ("cat", "2024/03.b.jpg", "cat_2024_03_b"),
        ("Kätzchen", "ä ö.png", "K_tzchen_"),
    ],
)
def test_key_of_a_file(class_name: str, relative: str, key: str) -> None:
    assert sample_key(class_name, relative).startswith(key)


@given(class_name=st.text(min_size=1), stem=st.text(min_size=1))
def test_any_name_gives_a_key_that_webdataset_keeps_whole(class_name: str, stem: str) -> None:
    key = sample_key(class_name, stem + ".jpg")
    assert split_key(key + ".jpg") == (key, "jpg")
    assert key.isascii()
    assert 0 < len(key) <= MAX_KEY_LENGTH


def test_long_names_stay_apart() -> None:
    one, other = sample_key("c", "x" * 200 + "1.jpg"), sample_key("c", "x" * 200 + "2.jpg")
    assert one != other
    assert len(one) == MAX_KEY_LENGTH


def test_equal_keys_get_a_digest_of_their_path() -> None:
    keys = unique_keys(["a_b", "c", "a_b"], ["a/b.jpg", "c.jpg", "a b.jpg"]).tolist()
    assert keys[:2] == [b"a_b", b"c"]
    assert keys[2].startswith(b"a_b-")
    assert len(set(keys)) == 3


def test_one_path_twice_is_refused() -> None:
    with pytest.raises(DataFormatError, match="two have the same path"):
        unique_keys(["a", "a", "a"], ["a.jpg", "b.jpg", "b.jpg"])


def test_refs_of_files_and_of_a_part_of_an_archive() -> None:
    files = SampleTable(
        keys=np.array([b"k0", b"k1"]),
        labels=np.array([5, 6]),
        containers=("/x", "/y"),
        container_ids=np.array([1, 0], np.int32),
        names=np.array([b"a/0.jpg", b"1.jpg"]),
        offsets=np.full(2, WHOLE_FILE),
        sizes=np.array([10, 20]),
    )
    (ref,) = files.refs(np.array([0]))
    assert (ref.key, ref.label, ref.path, ref.size) == ("k0", 5, "/y/a/0.jpg", 10)
    assert ref.place == "/y/a/0.jpg"
    part = samples_in_file("/t.tar", ["k"], np.array([1]), np.array([512]), np.array([9]))
    assert part.refs(np.array([0]))[0].place == "/t.tar at byte 512"
    assert len(part) == 1


def test_refs_of_pixels_in_memory_carry_them() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    table = samples_in_memory("/x.tar.gz", ["a", "b", "c"], np.arange(3), pixels, (2, 2))
    first, second = table.refs(np.array([2, 0]))
    assert (first.key, first.label, first.raw) == ("c", 2, bytes([8, 9, 10, 11]))
    assert (second.key, second.raw) == ("a", bytes([0, 1, 2, 3]))
    assert first.place == "/x.tar.gz"
    assert table.sizes.tolist() == [4, 4, 4]  # bytes, which bound a shard
    assert table.pixel_shape == (2, 2)
