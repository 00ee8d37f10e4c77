"""The micro-batches of a process, made ahead by other processes if it is wanted."""

import time
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset

from d2v.protocols import Batches
from d2v.training.stopping import ignore_signals
from d2v.types import View

# Views, sample ids, and the seconds that were waited for them
Loaded: TypeAlias = Generator[tuple[list[View], list[str], float], None, None]


class MicroBatches(Dataset):
    """The micro-batches of one process, by number; a DataLoader may make them in other processes."""

    def __init__(self, batches: Batches, rank: int, world: int, accumulate: int):
        self.batches, self.rank, self.world, self.accumulate = batches, rank, world, accumulate

    def __getitem__(self, number: int) -> tuple[list[View], list[str]]:
        step, micro = divmod(number, self.accumulate)
        views, ids = self.batches(step, micro * self.world + self.rank, self.world * self.accumulate)
        return [view.located() for view in views], ids


def loaded(micro_batches: MicroBatches, numbers: Sequence[int], workers: int, device: torch.device) -> Loaded:
    """Micro-batches by their numbers, in order, views on the device; to be closed, as its processes end then.

    ValueError: one cannot be made.
    """
    loader = DataLoader(
        micro_batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        worker_init_fn=ignore_signals,
        collate_fn=_as_is,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # of its own: the global one belongs to dropout
    )
    source: Any = iter(loader)
    try:
        while True:
            start = time.perf_counter()
            try:
                views, ids = next(source)
            except ValueError as error:
                raise ValueError(_message(error)) from error
            views = [View(*view).to(device) for view in views]
            yield views, ids, time.perf_counter() - start
    finally:
        # Left to Python's exit they would get a signal, which they ignore, and be waited for without an end; and what
        # holds on to them until then can be anything, such as the traceback of an error.
        if workers:
            source._shutdown_workers()


def _message(error: ValueError) -> str:
    """Its last line: one of a data loading process begins with a traceback."""
    lines = str(error).strip().splitlines() or [""]
    return lines[-1].removeprefix("ValueError: ")


def _as_is(sample: Any) -> Any:
    return sample
