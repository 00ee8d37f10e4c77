"""Which samples make the batch of a step: a pure function of (seed, step); resuming and sharding need no state."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch

from d2v.modalities.common.data_report import UnreadableError
from d2v.modalities.common.permutation import permuted

Read = TypeVar("Read")
STAND_INS = 100  # samples in a row of which one must be readable

EPOCH = 0x5A3B1E  # sets the shuffle of an epoch apart from other draws of the seed
BATCHES = 0xBA7C4  # and the order of its batches from that of its samples
MANY = 10_000_000  # samples; the order of more is computed a batch at a time, and takes no memory


class Cut:
    """Lengths of samples, of which at most `most` counts; made when asked for, as a file may hold the lengths."""

    def __init__(self, lengths: np.ndarray, most: int):
        self._lengths, self._most = lengths, most

    def __getitem__(self, places: np.ndarray | int) -> Any:
        return np.minimum(self._lengths[places], self._most)


class Sampler:
    """Shuffled epochs, cut into global batches; with `lengths`, batches hold samples of similar length.

    Shuffled samples are sorted by length within chunks of `chunk` batches and the order of batches is shuffled again,
    so that padding is small and an epoch still differs from the last. What does not fill a batch waits for the next
    epoch's shuffle. Of more than MANY samples no order is kept: see _batch.
    """

    def __init__(
        self, num_samples: int, batch_size: int, seed: int, *, lengths: np.ndarray | Cut | None = None, chunk: int = 32
    ):
        """ValueError: fewer samples than one batch."""
        if num_samples < batch_size:
            raise ValueError(
                f"data has {num_samples} usable samples, fewer than one batch: train.batch_size is {batch_size}"
                + (f", and may be {num_samples} or less" if num_samples else "")
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.lengths, self.chunk = lengths, chunk
        self._made: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.num_samples // self.batch_size

    def __call__(self, step: int) -> np.ndarray:
        """Indices of the global batch of `step`, (batch_size,)."""
        epoch, number = divmod(step, len(self))
        if self.num_samples > MANY:
            return self._batch(epoch, number)
        if epoch not in self._made:
            for other in list(self._made):
                if other != epoch - 1:  # the one before is kept: parts may be a step apart
                    del self._made[other]
            self._made[epoch] = self._make_epoch(epoch)
        return self._made[epoch][number]

    def __getstate__(self) -> dict[str, Any]:
        """Other processes make the order themselves."""
        return {**vars(self), "_made": {}}

    def _batch(self, epoch: int, number: int) -> np.ndarray:
        """Indices of one batch, (batch_size,), by permutations of samples and of batches that are computed."""
        if self.lengths is None:
            return self._drawn(epoch, number * self.batch_size, self.batch_size)
        generator = np.random.default_rng((self.seed, EPOCH, epoch, BATCHES))
        place = int(permuted(np.array([number]), len(self), generator)[0])
        first = place - place % self.chunk  # of the chunk
        size = min(self.chunk, len(self) - first) * self.batch_size
        chunk = self._drawn(epoch, first * self.batch_size, size)
        by_length = chunk[np.argsort(self.lengths[chunk], kind="stable")]
        return by_length.reshape(-1, self.batch_size)[place - first]

    def _drawn(self, epoch: int, first: int, count: int) -> np.ndarray:
        """So many samples of an epoch's shuffle, (count,)."""
        generator = np.random.default_rng((self.seed, EPOCH, epoch))
        return permuted(np.arange(first, first + count), self.num_samples, generator)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        """Indices of an epoch's batches, (batches, batch_size)."""
        generator = np.random.default_rng((self.seed, EPOCH, epoch))
        order = generator.permutation(self.num_samples)[: len(self) * self.batch_size]
        if self.lengths is None:
            return order.reshape(-1, self.batch_size)
        size = self.chunk * self.batch_size
        by_length = []
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            by_length.append(chunk[np.argsort(self.lengths[chunk], kind="stable")])
        return generator.permutation(np.concatenate(by_length).reshape(-1, self.batch_size))


class Cells(Sequence[Any]):
    """What rows hold, a cell at a time: no object for each of a million samples."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._cell(place) for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index} of {len(self)} rows")
        return self._cell(int(index) % len(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr([*self])

    def _cell(self, row: int) -> Any:
        raise NotImplementedError


class Names(Cells):
    """The names in a column of a data set, in memory or mapped as that is."""

    def __init__(self, dataset: Any, name: str):
        """`dataset`: of this column alone."""
        self._dataset, self._name = dataset, name
        self._column = dataset.with_format("arrow")[:].column(name)

    def __len__(self) -> int:
        return len(self._column)

    def _cell(self, row: int) -> str:
        return self._column[row].as_py()

    def __reduce__(self) -> Any:
        return Names, (self._dataset, self._name)


class Numbered(Cells):
    """The names of rows that have no other, "<split>:<row>"."""

    def __init__(self, split: str, rows: range):
        self._split, self._rows = split, rows

    def __len__(self) -> int:
        return len(self._rows)

    def _cell(self, row: int) -> str:
        return f"{self._split}:{self._rows[row]}"


class Usable(Cells):
    """Which of the rows of a source can be used, in their order; what is kept is the others, which are few."""

    def __init__(self, num_rows: int, others: np.ndarray):
        """`others`: (m,) rising numbers of rows."""
        self.others, self._length = others, num_rows - len(others)
        self._before = others - np.arange(len(others))  # usable rows before each of the others

    def __len__(self) -> int:
        return self._length

    def _cell(self, row: int) -> int:
        return row + int(np.searchsorted(self._before, row, "right"))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.delete(np.arange(self._length + len(self.others)), self.others).astype(dtype or np.int64, copy=False)


class Chosen(Cells):
    """Those cells that are in the rows that are used."""

    def __init__(self, cells: Sequence[Any], rows: Sequence[int]):
        self._cells, self._rows = cells, rows

    def __len__(self) -> int:
        return len(self._rows)

    def _cell(self, row: int) -> Any:
        return self._cells[self._rows[row]]


def share(num_rows: int, part: int, parts: int) -> slice:
    """Rows of a global batch that fall to `part` of `parts` (process, then micro-batch).

    Every parts-th, so that lengths stay alike.
    """
    return slice(part, num_rows, parts)


def generators(seed: int, step: int, positions: Sequence[int]) -> list[np.random.Generator]:
    """One generator per row, a function of (seed, step, position in the global batch) and of nothing else."""
    return [np.random.default_rng((seed, step, int(position))) for position in positions]


def following(place: int, count: int) -> np.ndarray:
    """A sample, of `count`, and those after it that stand in for it if it cannot be read."""
    return np.arange(place, place + STAND_INS) % count


def readable(
    ids: Sequence[str],
    candidates: np.ndarray,
    read: Callable[[int], Read],
    bad_log: Callable[[str, str], None],
    none: str,
) -> tuple[int, Read]:
    """The first of the candidates that can be read, and what `read` made of it; `bad_log` hears of those before it.

    ValueError, which begins with `none`: none can.
    """
    for candidate in candidates.tolist():
        try:
            return candidate, read(candidate)
        except (UnreadableError, OSError) as error:
            bad_log(ids[candidate], str(error))
    raise ValueError(f"{none}, the first is {ids[int(candidates[0])]}: was data.path changed or unmounted?")


@contextmanager
def seeded_globals(generator: np.random.Generator) -> Iterator[None]:
    """Inside, the global generators of torch (CPU), numpy and random follow `generator`; then they are as before."""
    python, legacy = random.getstate(), np.random.get_state()
    seeds = generator.integers(2**32, size=3)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seeds[0]))
            random.seed(int(seeds[1]))
            np.random.seed(int(seeds[2]))
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
