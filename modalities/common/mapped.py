"""Arrays in files, of which processes share the memory, and are sent the name alone."""

import itertools
import mmap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from d2v import cache


class Mapped(np.memmap):
    """An array of a .npy file, only read."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        if isinstance(self.base, mmap.mmap):  # all of the file, no part of it
            return mapped, (Path(str(self.filename)),)
        return np.array(self, subok=False).__reduce_ex__(protocol)


def mapped(file: Path) -> np.ndarray:
    """The array of a .npy file."""
    with file.open("rb") as opened:
        if np.lib.format.read_magic(opened) != (1, 0):
            return np.load(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
        start = opened.tell()
    if 0 in shape:
        return np.load(file)
    return Mapped(file, dtype=dtype, mode="r", offset=start, shape=shape)


Pieces = Iterable[np.ndarray]  # of one array, along its first axis; one or more


def kept(
    kind: str, name: str, digest: str | None, make: Callable[[], dict[str, np.ndarray | Pieces]]
) -> dict[str, np.ndarray]:
    """The arrays that `make` makes of what has this digest, mapped where they can be kept; None: they are not.

    Of an array that comes in pieces one at a time is in memory.
    """
    if digest is None:
        return _joined(make())
    entry = cache.Entry(kind, name, digest)
    with cache.sought(entry) as folder:
        folder = folder or cache.keep(entry, lambda draft: _save(draft, make()))
    if folder is None:
        return _joined(make())
    return {file.stem: mapped(file) for file in folder.glob("*.npy")}


def _joined(arrays: dict[str, np.ndarray | Pieces]) -> dict[str, np.ndarray]:
    return {
        name: array if isinstance(array, np.ndarray) else np.concatenate([*array]) for name, array in arrays.items()
    }


def _save(folder: Path, arrays: dict[str, np.ndarray | Pieces]) -> None:
    for name, array in arrays.items():
        file = folder / f"{name}.npy"
        if isinstance(array, np.ndarray):
            np.save(file, array)
            continue
        pieces = iter(array)
        first = next(pieces)
        growing = Growing(file, first.dtype, first.shape[1:])
        for piece in itertools.chain([first], pieces):
            growing.append(piece)
        growing.close()


class Growing:
    """A .npy file that grows along its first axis by pieces, of which none stays in memory."""

    def __init__(self, file: Path, dtype: Any, shape: tuple[int, ...] = ()):
        """`shape`: of an entry."""
        self._dtype, self._shape, self._length = np.dtype(dtype), shape, 0
        self._file = file.open("wb")
        self._head()

    def append(self, piece: np.ndarray) -> None:
        """Adds n entries."""
        self._file.write(np.ascontiguousarray(piece, self._dtype).tobytes())
        self._length += len(piece)

    def close(self) -> None:
        """The file is whole then."""
        self._file.seek(0)
        self._head()
        self._file.close()

    def _head(self) -> None:
        """What numpy writes has room for any length."""
        about = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, about)
