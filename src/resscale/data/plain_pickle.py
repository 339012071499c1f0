"""Pickles of plain values and arrays of bytes, read without running anything that they ask for.

A pickle is a program: it may call whatever it names. Here each name it may use leads to a class
that keeps what it is given and does nothing; any other name is refused. The arrays are built
afterwards, from what was kept, once type and length are checked.
"""

from __future__ import annotations

import io
import math
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from resscale.errors import DataFormatError

Value = Any  # int, float, str, bytes, uint8 array, or a list of these


def load_plain_pickle(raw: bytes, name: str) -> dict[str, Value]:
    """Read a pickled dict of numbers, text, bytes, uint8 arrays, and lists of these.

    Args:
        raw: the pickle, of any protocol, written by Python 2 or 3.
        name: the file's name, for messages.

    Returns:
        The dict, its keys as text; text that Python 2 wrote is bytes.

    Raises:
        DataFormatError: damaged, no dict, or it asks for more than it may. Nothing of it was run.
    """
    try:
        loaded = _PlainUnpickler(io.BytesIO(raw), encoding="bytes").load()
        if not isinstance(loaded, dict):
            raise pickle.UnpicklingError(f"it holds a {type(loaded).__name__}, not a dict")
        return {text_of(_value(key)): _value(value) for key, value in loaded.items()}
    except _Forbidden as error:
        raise DataFormatError(
            f"{name} asks for {error}, which its format has no use for: it is damaged, or made to "
            f"run something. Nothing of it was run. Download it again from a source that you trust."
        ) from error
    except Exception as error:  # damage leads the unpickler into whatever kind of error
        raise DataFormatError(
            f"{name} is damaged ({error}): a pickled dict is needed. Download it again."
        ) from error


def text_of(value: Value) -> str:
    """Return text, decoded where it is bytes.

    Raises:
        ValueError: it is neither, or not UTF-8.
    """
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        return value
    raise ValueError(f"a {type(value).__name__} where text is needed")


class _Forbidden(Exception):
    """The name of something that a pickle may not use."""


class _Kept:
    """Stands for what a pickle wants to build: keeps arguments and state, and does nothing.

    As it has `__setstate__`, a pickle cannot change the class itself either.
    """

    arguments: tuple[Value, ...] = ()
    state: Value = None

    def __init__(self, *arguments: Value) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Value) -> None:
        self.state = state


class _KeptArray(_Kept):
    """A numpy array: its state is (1, shape, type, whether in Fortran's order, bytes)."""


class _KeptBytes(_Kept):
    """Bytes that Python 3 wrote for Python 2: their arguments are (text, "latin1"), or none."""


_ALLOWED: dict[tuple[str, str], type[_Kept]] = {
    ("numpy.core.multiarray", "_reconstruct"): _KeptArray,
    ("numpy._core.multiarray", "_reconstruct"): _KeptArray,
    ("numpy", "ndarray"): _Kept,
    ("numpy", "dtype"): _Kept,
    ("_codecs", "encode"): _KeptBytes,
    ("__builtin__", "bytes"): _KeptBytes,  # called without arguments, for no bytes
}


class _PlainUnpickler(pickle._Unpickler):
    # The unpickler in Python, not the one in C: where a damaged byte makes the number of a memo
    # entry two thousand million, the one in C allocates all those before it.

    def find_class(self, module: str, name: str) -> type[_Kept]:
        """Return what stands for a name; the real thing is never looked up."""
        if (module, name) not in _ALLOWED:
            raise _Forbidden(f"{module}.{name}")
        return _ALLOWED[module, name]


def _value(kept: Value) -> Value:
    # One level of lists: a pickle may hold a list that holds itself.
    return [_item(item) for item in kept] if isinstance(kept, list) else _item(kept)


def _item(kept: Value) -> Value:
    if isinstance(kept, _KeptArray):
        return _array(kept)
    return _bytes(kept) if isinstance(kept, _KeptBytes) else kept


def _bytes(kept: _KeptBytes) -> bytes:
    if not kept.arguments:
        return b""
    text, encoding = kept.arguments
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise ValueError("bytes that are not written as latin1")
    return text.encode("latin1")


def _array(kept: _KeptArray) -> npt.NDArray[np.uint8]:
    _, shape, dtype, in_fortran_order, raw = kept.state
    code = _item(dtype.arguments[0])
    if code not in ("u1", b"u1", "|u1", b"|u1"):
        # Only what is known to be short is shown: tuples of tuples can be endless as text.
        shown = repr(code[:20]) if isinstance(code, str | bytes) else f"a {type(code).__name__}"
        raise ValueError(f"an array of type {shown}, not of unsigned bytes")
    # Nor is anything multiplied but a few numbers: a number times bytes would fill the memory.
    if type(shape) is not tuple or len(shape) > 8 or any(type(n) is not int for n in shape):
        raise ValueError("an array whose shape is no tuple of a few whole numbers")
    raw = _item(raw)
    if not isinstance(raw, bytes) or len(raw) != math.prod(shape):
        raise ValueError(f"an array of shape {shape} that is not as long")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if in_fortran_order else "C")
