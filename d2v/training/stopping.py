"""Ctrl-C and SIGTERM ask a run to stop after the step that it is in; a second Ctrl-C stops it at once.

A second SIGTERM does not: schedulers send one to all processes, and launchers such as torchrun pass theirs on.
"""

import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from d2v.training.distributed import all_sum

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopping:
    """While it is entered, notes the first signal; processes agree on it at log lines, where they wait anyway."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stopping":
        if threading.current_thread() is threading.main_thread():  # Python hears them nowhere else
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.accelerator.is_main_process:
            print(
                "stopping after this step, of several processes at the next log line; Ctrl-C now stops at once",
                file=sys.stderr,
                flush=True,
            )

    def is_asked(self, *, at_log_line: bool) -> bool:
        """Whether the run is to stop now; with several processes only `at_log_line` says so, for all of them alike."""
        if self.accelerator.num_processes == 1:
            return self.signal != 0
        if not at_log_line:
            return False
        asked = torch.tensor(float(self.signal != 0), device=self.accelerator.device)
        return bool(all_sum(asked).item())

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, as shells count; of a process that heard from another, SIGTERM's."""
        return 128 + (self.signal or signal.SIGTERM)


def ignore_signals(worker: int) -> None:
    """In a data loading process: what is meant for the run reaches these too, and must not end them before it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
