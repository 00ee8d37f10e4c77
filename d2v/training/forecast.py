"""Where a run trains, said before its first step; what the whole of it will take, said after the first twenty."""

import resource
import shutil
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

WARM_UP, WATCHED = 5, 20  # steps that are not counted: memory is taken, kernels are chosen; the last that is
WAITING = 0.3  # share of the time spent waiting for data, above which processes that load it would help


def where(accelerator: Accelerator) -> str:
    """One line: each process's device, and the precision."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    devices = gather_object([f"{device} ({name})" if name else device.type])
    several = f"{len(devices)} processes on {', '.join(devices)}" if len(devices) > 1 else f"on {devices[0]}"
    return f"training {several}, precision {accelerator.mixed_precision}"


class Forecast:
    """Measures steps WARM_UP + 1 to WATCHED of those that this process does."""

    def __init__(self, steps_left: int, device: torch.device):
        self.steps_left, self.device = steps_left, device
        self.done = 0  # steps
        self.seconds = self.waited = 0.0
        self._last = min(WATCHED, steps_left)

    def add(self, start: float, waited: float) -> bool:
        """One step that began at `start` and waited for data so long; whether it was the last that is watched."""
        self.done += 1
        if self.done == self._last and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # kernels of the steps before may still run
        if self.done > min(WARM_UP, self._last - 1):
            self.seconds += time.perf_counter() - start
            self.waited += waited
        return self.done == self._last

    def line(self, objective: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, keep: int) -> str:
        """Time, memory and disk of the whole run, and what would help."""
        counted = self.done - min(WARM_UP, self._last - 1)
        each, rest = self.seconds / counted, self.steps_left - self.done
        checkpoint = _bytes(objective) + sum(_size(state) for state in optimizer.state.values())
        disk, free = (keep + 1) * checkpoint + 2 * _bytes(objective), shutil.disk_usage(folder).free
        text = (
            f"{each:.3g} s a step: {duration(each * rest)} for the {rest} steps that are left, checks apart; "
            f"memory {gigabytes(_peak(self.device))}; disk {gigabytes(disk)} of {gigabytes(free)} that are free"
        )
        share = self.waited / max(self.seconds, 1e-9)
        if disk > free:
            text += ". That is too little: choose another run.dir, or free some"
        if share > WAITING:
            text += f". {share:.0%} of the time is spent waiting for data: run.workers=2 or more may help"
        return text


def _bytes(module: nn.Module) -> int:
    return _size(module.state_dict())


def _size(values: dict) -> int:
    return sum(value.numel() * value.element_size() for value in values.values() if isinstance(value, torch.Tensor))


def _peak(device: torch.device) -> int:
    """Bytes: of the GPU's memory, or of this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def duration(seconds: float) -> str:
    """Seconds for a person: 40 s, 3 min, 2 h 5 min, 3 d 4 h."""
    minutes, hours = round(seconds / 60), int(seconds // 3600)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {round(seconds % 3600 / 60)} min"
    return f"{hours // 24} d {hours % 24} h"


def gigabytes(number: float) -> str:
    """Bytes for a person."""
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
