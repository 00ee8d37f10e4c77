"""When a run's checkpoints are written: while it waits, or while it goes on."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from accelerate import Accelerator

from d2v.config.schema import RunConfig
from d2v.training import checkpoint
from d2v.training.distributed import together


class Saver:
    """Writes the checkpoints of a run, whose steps have `accumulate` micro-batches, to a folder.

    With run.save_async a copy is taken in memory and written by a thread: steps wait for the copy alone.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, run: RunConfig, accumulate: int):
        self.accelerator, self.folder, self.keep, self.accumulate = accelerator, folder, run.keep, accumulate
        self.thread = ThreadPoolExecutor(1) if run.save_async else None
        self.writing: Future | None = None  # of the main process

    def __call__(self, step: int) -> None:
        """Every process calls it. ValueError: a disk does not take this checkpoint, or did not take the last."""
        if self.thread is None:
            checkpoint.save(self.accelerator, self.folder, step, self.keep, accumulate=self.accumulate)
            return
        self.wait()
        write = checkpoint.copied(self.accelerator, self.folder, step, self.keep, accumulate=self.accumulate)
        if write is not None:
            self.writing = self.thread.submit(write)

    def wait(self) -> None:
        """Until the last checkpoint is whole; every process calls it. ValueError: a disk did not take it."""
        if self.thread is None:
            return
        writing, self.writing = self.writing, None
        together(lambda: None if writing is None else writing.result())
