"""Arrays in files, of which processes share the memory, and are sent the name alone."""

import mmap
from collections.abc import Callable
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


def kept(kind: str, name: str, digest: str | None, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `make` makes of what has this digest, mapped where they can be kept; None: they are not."""
    if digest is None:
        return make()
    entry = cache.Entry(kind, name, digest)
    with cache.sought(entry) as folder:
        if folder is None:
            made = make()
            folder = cache.keep(entry, lambda draft: _save(draft, made))
            if folder is None:
                return made
    return {file.stem: mapped(file) for file in folder.glob("*.npy")}


def _save(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


class Growing:
    """A .npy file of one axis that grows by pieces, of which none stays in memory."""

    def __init__(self, file: Path, dtype: Any):
        self._dtype, self._length = np.dtype(dtype), 0
        self._file = file.open("wb")
        self._head()

    def append(self, piece: np.ndarray) -> None:
        """Adds (n,) values."""
        self._file.write(np.ascontiguousarray(piece, self._dtype).tobytes())
        self._length += len(piece)

    def close(self) -> None:
        """The file is whole then."""
        self._file.seek(0)
        self._head()
        self._file.close()

    def _head(self) -> None:
        """What numpy writes has room for any length."""
        about = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, about)
