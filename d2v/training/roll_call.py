"""Which process keeps the others waiting, asked once they have waited for run.ddp_timeout."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from d2v.training.distributed import world_size

PATIENCE = 20.0  # seconds within which all that wait notice that they do
OF_A_GROUP = r"gloo|NCCL|[Tt]imed out|[Cc]onnection (closed|reset)"  # in an error of processes that wait for others


class RollCall:
    """Has a group of its own, on CPUs: one in which a reduction has failed is of no more use."""

    def __init__(self):
        self.group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None

    @contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Within it `step` is done. ValueError, on those that wait: processes that do not come, by their numbers."""
        try:
            yield
        except RuntimeError as error:
            if self.group is None or not re.search(OF_A_GROUP, str(error)):
                raise
            raise ValueError(
                f"{self._missing()} did not come to step {step + 1} within run.ddp_timeout, or has ended: "
                "see what it said last; the same command goes on from the last checkpoint"
            ) from error

    def _missing(self) -> str:
        """Those that do not answer, by their numbers; process 0 alone asks."""
        here = dist.get_rank()
        try:
            dist.monitored_barrier(self.group, timeout=timedelta(seconds=PATIENCE), wait_all_ranks=True)
        except RuntimeError as error:
            found = re.search(r"[Rr]anks? ([\d, ]+) failed to pass", str(error))
            if here == 0:
                return f"process {found[1].strip(' ,')}" if found else "another process"
            return "process 0, or one that it names,"
        return "a process that is here now"
