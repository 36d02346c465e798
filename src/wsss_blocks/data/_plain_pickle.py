"""Parse a pickled dictionary of arrays or tensors without running anything it asks for.

A pickle is a program: it names functions and calls them. Here each name that a dictionary of arrays
needs is answered by a recorder that keeps its arguments; any other name is refused. The numbers of
a torch tensor are a pickle within the pickle, which ``torch.load(weights_only=True)`` reads.
"""

import pickle
from io import BytesIO
from math import prod
from operator import index
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["load_arrays", "load_map_arrays", "skip_npy_header"]


def load_arrays(file: IO[bytes]) -> dict[str, NDArray[np.float64]]:
    """Read a pickle of ``{str: 1-D array or list of numbers}``, bare or as a 0-d object array.

    Raises:
        ValueError: the pickle is broken, names anything else, or holds something else.
    """
    try:
        return {str(key): _vector(row) for key, row in _dictionary(file).items()}
    except Exception as error:  # a hostile pickle may fail in any way
        raise ValueError(f"not a plain pickle of label vectors: {error}") from error


def load_map_arrays(file: IO[bytes]) -> dict[str | int, NDArray[Any]]:
    """Read a pickle of ``{str or int: array or list of numbers}``, bare or as a 0-d object array.

    Raises:
        ValueError: the pickle is broken, names anything else, or holds something else.
    """
    try:
        found = {_plain(key): _numbers(row) for key, row in _dictionary(file).items()}
        return {key if isinstance(key, str) else index(key): row for key, row in found.items()}
    except Exception as error:  # as above
        raise ValueError(f"not a plain pickle of arrays: {error}") from error


def skip_npy_header(file: IO[bytes]) -> None:
    """Move on to the pickle in a ``.npy`` file of objects.

    Raises:
        ValueError: it is no such file.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        dtype = np.lib.format.read_array_header_1_0(file)[2]
    elif version == (2, 0):
        dtype = np.lib.format.read_array_header_2_0(file)[2]
    else:
        raise ValueError(f".npy format {version} is not known")
    if dtype != np.dtype(object):
        raise ValueError(f"expected a dictionary, got {dtype} data")


class _Recorder:
    """What stands in for a callable of the pickle: an object that keeps what it was called with."""

    __slots__ = ("args", "state")

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state


class _Name(_Recorder):
    """A name that is only passed on, such as ``numpy.ndarray``."""

    __slots__ = ()


class _Bytes(_Recorder):
    """``_codecs.encode(text, "latin1")``: how protocol 2 writes bytes."""

    __slots__ = ()

    def read(self) -> bytes:
        text, encoding = self.args
        if encoding != "latin1":
            raise ValueError(f"bytes in {encoding!r}")
        return bytes(text, "latin1")


class _Dtype(_Recorder):
    __slots__ = ()

    def read(self) -> np.dtype[Any]:
        code = self.args[0]
        if not isinstance(code, str) or code[0] not in "biuf" or not code[1:].isdigit():
            raise ValueError(f"array of dtype {code!r}")
        big = bool(self.state) and self.state[1] == ">"
        return np.dtype(code).newbyteorder(">" if big else "<")


class _Array(_Recorder):
    __slots__ = ()

    def items(self) -> list[Any]:
        """Return the elements of an object array."""
        values = self.state[4]
        if not isinstance(values, list) or len(values) != 1:
            raise ValueError("expected a 0-d object array")
        return values

    def read(self) -> NDArray[Any]:
        _, shape, dtype, by_columns, data = self.state
        raw = data.read() if isinstance(data, _Bytes) else bytes(data)
        return np.frombuffer(raw, dtype.read()).reshape(shape, order="F" if by_columns else "C")


class _Storage(_Recorder):
    """``torch.storage._load_from_bytes(data)``: the numbers of a tensor, from torch.save."""

    __slots__ = ()


class _Tensor(_Array):
    """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``."""

    __slots__ = ()

    def read(self) -> NDArray[Any]:
        import torch

        storage, offset, size, stride = self.args[:4]
        try:
            found = torch.load(BytesIO(storage.args[0]), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # its message advises to execute
            raise ValueError("tensor of something else than numbers") from None
        whole = torch.empty(0, dtype=found.dtype).set_(found)
        if prod(size) > len(whole):  # a stride of 0 makes any size out of one number
            raise ValueError(f"tensor {size} of {len(whole)} numbers")
        return whole.as_strided(size, stride, offset).numpy()  # raises where it leaves the storage


class _Scalar(_Recorder):
    __slots__ = ()

    def read(self) -> Any:
        dtype, data = self.args
        raw = data.read() if isinstance(data, _Bytes) else bytes(data)
        return np.frombuffer(raw, dtype.read())[0]


_KNOWN: dict[tuple[str, str], type[_Recorder]] = {
    ("_codecs", "encode"): _Bytes,
    ("collections", "OrderedDict"): _Name,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch.storage", "_load_from_bytes"): _Storage,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Name,
    **{
        (module, name): recorder
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name, recorder in (("_reconstruct", _Array), ("scalar", _Scalar))
    },
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Recorder]:
        """Answer a name of the pickle with its recorder."""
        if (module, name) not in _KNOWN:
            raise ValueError(f"it asks for {module}.{name}")
        return _KNOWN[module, name]


def _dictionary(file: IO[bytes]) -> dict[Any, Any]:
    value = _Reader(file).load()
    if isinstance(value, _Array):
        value = value.items()[0]
    if not isinstance(value, dict):
        raise TypeError(f"expected a dictionary, got {type(value).__name__}")
    return value


def _plain(value: Any) -> Any:
    return value.read() if isinstance(value, _Array | _Scalar) else value


def _numbers(row: Any) -> NDArray[Any]:
    row = _plain(row)
    numbers = np.asarray([_plain(x) for x in row] if isinstance(row, list | tuple) else row)
    if numbers.dtype.kind not in "biuf":
        raise TypeError(f"expected numbers, got {numbers.dtype}")
    return numbers


def _vector(row: Any) -> NDArray[np.float64]:
    numbers = _numbers(row)
    if numbers.ndim != 1:
        raise TypeError(f"expected vectors of numbers, got shape {numbers.shape}")
    return numbers.astype(np.float64)
