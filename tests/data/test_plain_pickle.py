"""Pickles of plain values are read; one that wants to run something runs nothing."""

import operator
import os
import pickle
import struct
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resscale.data.plain_pickle import load_plain_pickle, text_of
from resscale.errors import DataFormatError

PIXELS = np.arange(12, dtype=np.uint8).reshape(3, 4)
# What Python 2's cPickle writes, protocol 2: {"data": array, "labels": [3, 1], "name": "batch"}.
PYTHON2 = (
    b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    b"(K\x01K\x03K\x04\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
    b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x0c\x00\x00\x00"
    + PIXELS.tobytes()
    + b"tbU\x06labels](K\x03K\x01eU\x04nameU\x05batchu."
)


class Payload:
    """Pickled as a call, as an attacker would."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def check(loaded: dict[str, Any]) -> None:
    assert list(loaded) == ["data", "labels", "name"]
    np.testing.assert_array_equal(loaded["data"], PIXELS)
    assert loaded["data"].dtype == np.uint8
    assert loaded["labels"] == [3, 1]
    assert loaded["name"] == b"batch"


def test_a_pickle_of_python_2() -> None:
    check(load_plain_pickle(PYTHON2, "x"))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_a_pickle_of_python_3(protocol: int, module: bytes) -> None:
    raw = pickle.dumps({b"data": PIXELS, b"labels": [3, 1], "name": b"batch"}, protocol)
    if protocol < 4:  # from 4 on, a name's length stands before it
        raw = raw.replace(b"cnumpy._core.multiarray\n", b"c" + module + b"\n")
        assert module in raw
    check(load_plain_pickle(raw, "x"))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_fortran_order_is_kept_apart(protocol: int) -> None:
    pixels = np.asfortranarray(PIXELS)
    loaded = load_plain_pickle(pickle.dumps({"data": pixels}, protocol), "x")
    np.testing.assert_array_equal(loaded["data"], PIXELS)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_bytes_of_any_length_and_value(protocol: int) -> None:
    values = [b"", b"a", bytes(range(256))]
    assert load_plain_pickle(pickle.dumps({"a": values}, protocol), "x") == {"a": values}


def test_lists_of_text() -> None:
    raw = pickle.dumps({b"names": [b"cat", "dog", b"newt"]}, 2)
    names = load_plain_pickle(raw, "x")["names"]
    assert [text_of(name) for name in names] == ["cat", "dog", "newt"]
    with pytest.raises(ValueError, match="a int where text is needed"):
        text_of(7)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("nested", [False, True])
def test_a_payload_is_refused_and_does_not_run(tmp_path: Path, protocol: int, nested: bool) -> None:
    mark = tmp_path / "it-ran"
    payload = Payload(os.mkdir, str(mark))
    raw = pickle.dumps({"data": [PIXELS, payload]} if nested else payload, protocol)
    with pytest.raises(
        DataFormatError, match=r"data_batch_1 asks for posix\.mkdir, .*Nothing of it was run"
    ):
        load_plain_pickle(raw, "data_batch_1")
    assert not mark.exists()
    pickle.loads(raw)  # the very same bytes, read by an unpickler that trusts them
    assert mark.exists()


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (eval, "__builtin__.eval"),
        (getattr, "__builtin__.getattr"),
        (operator.attrgetter, "operator.attrgetter"),
        (np.load, "numpy.load"),
        (np.fromfile, "numpy.fromfile"),
    ],
)
def test_no_other_name_is_looked_up(function: Any, name: str) -> None:
    raw = pickle.dumps(Payload(function, "x"), 2)
    with pytest.raises(DataFormatError, match=f"asks for {name}, "):
        load_plain_pickle(raw, "x")


@pytest.mark.parametrize("code", [b"_codecs\nencode", b"numpy\ndtype", b"numpy\nndarray"])
def test_the_allowed_names_cannot_be_changed_from_inside(code: bytes) -> None:
    attributes = b"}U\x09argumentsU\x04evils"
    for state in (attributes, b"N" + attributes + b"\x86"):  # {...} and (None, {...})
        with pytest.raises(DataFormatError, match=r"is damaged .*__setstate__"):
            load_plain_pickle(b"\x80\x02c" + code + b"\n" + state + b"b.", "x")
    check(load_plain_pickle(PYTHON2, "x"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "it holds a list, not a dict"),
        ({"data": PIXELS.astype(np.int64)}, "array of type 'i8', not of unsigned bytes"),
        ({"data": np.array([None])}, "array of type 'O8', not of unsigned bytes"),
        ({7: 1}, "a int where text is needed"),
    ],
)
def test_other_contents(content: Any, message: str) -> None:
    with pytest.raises(DataFormatError, match=f"x is damaged .*{message}.*Download it again"):
        load_plain_pickle(pickle.dumps(content, 4), "x")


def test_bytes_in_another_encoding_than_latin1() -> None:
    raw = pickle.dumps({"a": b"\xff"}, 2).replace(b"latin1", b"utf-16")
    with pytest.raises(DataFormatError, match="bytes that are not written as latin1"):
        load_plain_pickle(raw, "x")


def test_an_array_that_is_not_as_long_as_its_shape() -> None:
    raw = PYTHON2.replace(b"K\x03K\x04\x86", b"K\x03K\x05\x86")
    with pytest.raises(DataFormatError, match=r"array of shape \(3, 5\) that is not as long"):
        load_plain_pickle(raw, "x")


# ((0, 0), (0, 0)) and so on, 25 levels: a few bytes each, and 2**25 zeros as text.
DOUBLED = b"K\x00" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(25))


@pytest.mark.parametrize(
    ("sound", "harmful", "message"),
    [
        # (2**30, b"x"), whose product is a text of 1 GiB
        (b"K\x03K\x04\x86", b"J\x00\x00\x00\x40U\x01x\x86", "no tuple of a few whole numbers"),
        (b"K\x03K\x04\x86", DOUBLED, "no tuple of a few whole numbers"),
        (b"K\x03K\x04\x86", b"(" + 9 * b"K\x01" + b"t", "no tuple of a few whole numbers"),
        (b"U\x02u1", DOUBLED, "an array of type a tuple"),
        (b"U\x02u1", b"T\x00\x00\x10\x00" + bytes(2**20), "an array of type b'"),
    ],
)
def test_a_small_file_does_not_fill_the_memory(sound: bytes, harmful: bytes, message: str) -> None:
    raw = PYTHON2.replace(sound, harmful)
    assert raw != PYTHON2
    tracemalloc.start()
    with pytest.raises(DataFormatError, match=message) as caught:
        load_plain_pickle(raw, "x")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 8 * 2**20  # the largest of these files has 1 MiB
    assert len(str(caught.value)) < 300


def test_a_list_that_holds_itself() -> None:
    endless: list[Any] = []
    endless.append(endless)
    loaded = load_plain_pickle(pickle.dumps({"a": endless}, 2), "x")
    assert loaded["a"][0][0][0] is loaded["a"][0]


@given(cut=st.integers(0, len(PYTHON2) - 1), position=st.integers(0, len(PYTHON2) - 1))
def test_any_damage_is_one_message_or_does_no_harm(cut: int, position: int) -> None:
    with pytest.raises(DataFormatError):
        load_plain_pickle(PYTHON2[:cut], "x")
    flipped = bytearray(PYTHON2)
    flipped[position] ^= 0x11
    with suppress(DataFormatError):  # no other error, and no crash
        load_plain_pickle(bytes(flipped), "x")


def test_a_memo_number_out_of_all_proportion_takes_no_memory() -> None:
    put = b"r" + struct.pack("<I", 2**31 - 1)
    raw = PYTHON2[:2] + b"}" + put + PYTHON2[3:]
    tracemalloc.start()
    check(load_plain_pickle(raw, "x"))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000  # an array of 2**31 pointers would be 17 GB


def test_the_length_of_an_array_is_the_files_not_the_headers() -> None:
    raw = PYTHON2.replace(b"T\x0c\x00\x00\x00", b"T" + struct.pack("<i", 2**31 - 1))
    with pytest.raises(DataFormatError, match="x is damaged"):
        load_plain_pickle(raw, "x")
