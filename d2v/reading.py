"""Samples that turn out to be unreadable when they are read: left out and named, and an error where they are too many.

n samples that are read in one pass.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from d2v.protocols import BadLog, Samples
from d2v.types import View

Batch = TypeVar("Batch")


def ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """These batches, none of which is None, each made by a thread while the one before is in use."""
    with ThreadPoolExecutor(1) as pool:
        batch = next(batches, None)
        while batch is not None:
            coming = pool.submit(next, batches, None)
            yield batch
            batch = coming.result()


def readable_views(
    samples: Samples, indices: np.ndarray, batches: Iterable[np.ndarray], log: BadLog
) -> Iterator[tuple[np.ndarray, View]]:
    """The view of each batch of places in `indices` (n,), and the places in it that could be read.

    `log` hears of the others; of a batch with such a one, each sample is read alone to find it.
    """
    for places in batches:
        try:
            view = samples.view(indices[places])
        except ValueError:
            places = np.array([place for place in places if _reads(samples, indices[place], log)], dtype=int)
            if not len(places):
                continue
            view = samples.view(indices[places])
        yield places, view


def _reads(samples: Samples, index: Any, log: BadLog) -> bool:
    try:
        samples.view([index])
    except ValueError as error:
        log(samples.ids[index], str(error))
        return False
    return True


def ignored(sample: str, reason: str) -> None:
    """Takes the place of a log of bad samples."""


class Limit:
    """A log of bad samples that is an error once a larger share of all is bad than data.max_bad_share."""

    def __init__(self, log: BadLog, max_bad_share: float, total: int):
        self._log, self.max_bad_share, self.total = log, max_bad_share, total
        self.bad: dict[str, str] = {}  # reason by id

    def __call__(self, sample: str, reason: str) -> None:
        """ValueError: now they are too many."""
        self._log(sample, reason)
        self.bad[sample] = reason
        if len(self.bad) > self.max_bad_share * self.total:
            raise ValueError(
                f"{len(self.bad)} of {self.total} samples cannot be read, data.max_bad_share is "
                f"{self.max_bad_share:.1%}: {named(self.bad)}"
            )


class Reader:
    """Reads samples for measurements, pass by pass; those that cannot be read are left out, and named once."""

    def __init__(self, max_bad_share: float = 0.0, log: BadLog = ignored):
        self.max_bad_share, self._log = max_bad_share, log
        self.bad: dict[str, str] = {}  # reason by id

    def views(
        self, samples: Samples, indices: np.ndarray, batches: Iterable[np.ndarray]
    ) -> Iterator[tuple[np.ndarray, View]]:
        """As `readable_views`, of all of `indices` in one pass.

        ValueError: none can be read, or too many cannot: more than the share of all `samples`, not of a small pass.
        """
        limit, read = Limit(self._note, self.max_bad_share, len(samples)), 0
        for places, view in readable_views(samples, indices, batches, limit):
            read += len(places)
            yield places, view
        if not read:
            raise ValueError(f"none of {len(indices)} samples can be read: {named(limit.bad)}")

    def readable(self, samples: Samples, indices: np.ndarray, batch_size: int) -> np.ndarray:
        """The places in `indices` that can be read. ValueError: too few."""
        batches = np.split(np.arange(len(indices)), range(batch_size, len(indices), batch_size))
        return np.concatenate([places for places, _ in self.views(samples, indices, batches)])

    def _note(self, sample: str, reason: str) -> None:
        if sample not in self.bad:
            self.bad[sample] = reason
            self._log(sample, reason)


def named(bad: dict[str, str]) -> str:
    """The first five, with reasons, for a message."""
    some = [f"{name}: {why}" for name, why in list(bad.items())[:5]]
    return "; ".join([*some, "..."] if len(bad) > 5 else some)
