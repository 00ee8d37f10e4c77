"""What a run writes down: means between log lines, steps that were not finite, and metrics.jsonl."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from d2v.files import append, written
from d2v.training.distributed import all_sum
from d2v.types import Pooled, View

MOST_POOLED = 50  # micro-batches whose metrics wait for a sum over processes: of 65,536 prototypes 80 MB


class Step(NamedTuple):
    """One optimizer step; what is on the device stays there until the next log line."""

    number: int
    loss: Tensor  # (), of one prediction
    norm: Tensor  # (), of the gradient before clipping
    finite: Tensor  # () bool: the step was taken
    bad: Tensor  # () bool: it was not, and not for fp16's scale alone
    count: Tensor  # () predictions
    samples: list[str]
    rates: dict[str, float]  # learning rate and, where there is a teacher, its EMA decay


class LogLine(NamedTuple):
    """Means since the last log line, speeds, and what must stop the run."""

    metrics: dict[str, float]
    speed: dict[str, float]
    error: str | None


class Meter:
    """What happened since the last log line, kept on the device until then."""

    def __init__(self, bad_steps: Path, max_bad_steps: int):
        self.bad_steps, self.max_bad_steps = bad_steps, max_bad_steps
        self.bad_in_a_row = 0
        self.any_steps = self.any_taken = False  # whether there was a step so far, and one that was finite
        self._clear()

    def _clear(self) -> None:
        self.metrics: dict[str, tuple] = {}  # the sum over micro-batches, and over how many
        self.pooled: dict[str, list[Pooled]] = {}  # of several processes: of each micro-batch
        self.steps: list[Step] = []
        self.waited: dict[str, float] = {}  # seconds, by part of a joint run, of another under ""
        self.samples, self.start = 0, time.perf_counter()

    def add_micro(self, metrics: Mapping[str, Tensor | Pooled], views: list[View], waited: float) -> None:
        """One micro-batch, for whose views the process waited so many seconds."""
        for name, value in metrics.items():
            if isinstance(value, Pooled):
                self.pooled.setdefault(name, []).append(value)
            else:
                self._add(name, value.detach())
        if any(len(values) >= MOST_POOLED for values in self.pooled.values()):
            self._pool()
        for part, seconds in _waits(views, waited).items():
            self.waited[part] = self.waited.get(part, 0.0) + seconds
        self.samples += _num_samples(views)

    def _add(self, name: str, value: Tensor) -> None:
        finite = value.isfinite()  # a micro-batch without predictions has no spread
        total, number = self.metrics.get(name, (0.0, 0.0))
        self.metrics[name] = (total + torch.where(finite, value, 0.0), number + finite.float())

    def _pool(self) -> None:
        """Takes what waits for sums over all processes, in one reduction."""
        waiting: list[tuple[str, Pooled]] = []
        for name in sorted(self.pooled):
            waiting += [(name, one) for one in self.pooled[name]]
        if waiting:
            sums = all_sum(torch.cat([one.sums for _, one in waiting]))
            for (name, one), own in zip(waiting, sums.split([len(one.sums) for _, one in waiting]), strict=True):
                self._add(name, one.value(own))
        self.pooled = {}

    def add_step(self, step: Step) -> None:
        """One optimizer step."""
        self.steps.append(step)

    def flush(self, write: bool) -> LogLine:
        """What happened since the last call; non-finite steps are written down with their samples."""
        loss = torch.stack([step.loss for step in self.steps]).cpu()
        norm = torch.stack([step.norm for step in self.steps]).cpu()
        finite = torch.stack([step.finite for step in self.steps]).cpu()
        error = self._count_bad(loss.tolist(), norm.tolist(), write)
        good = finite if finite.any() else torch.ones_like(finite)
        self._pool()
        record = {"loss": loss[good].mean().item(), "grad_norm": norm[good].mean().item()}
        record |= self._means()
        record |= self.steps[-1].rates
        record["skipped"] = float((~finite).sum())
        seconds = max(time.perf_counter() - self.start, 1e-9)
        samples = all_sum(torch.tensor(float(self.samples), device=self.steps[0].loss.device)).item()
        waited = sum(self.waited.values())
        speed = {"samples_per_second": samples / seconds, "data_wait": waited / seconds, "seconds": seconds}
        speed |= {f"{part}/data_wait": own / seconds for part, own in self.waited.items() if part}
        self._clear()
        return LogLine(record, speed, error)

    def _means(self) -> dict[str, float]:
        """Each metric's mean over micro-batches and processes; one that nothing could be said of is left out."""
        if not self.metrics:
            return {}
        names = sorted(self.metrics)
        totals, numbers = zip(*(self.metrics[name] for name in names), strict=True)
        sums = all_sum(torch.stack([torch.stack(totals).float(), torch.stack(numbers).float()])).tolist()  # (2, M)
        return {name: total / number for name, total, number in zip(names, *sums, strict=True) if number}

    def _count_bad(self, losses: list[float], norms: list[float], write: bool) -> str | None:
        """Writes down the steps that were not finite; what must stop the run if there are too many in a row."""
        error = None
        finite = torch.stack([step.finite for step in self.steps]).tolist()
        bad = torch.stack([step.bad for step in self.steps]).tolist()
        counts = torch.stack([step.count for step in self.steps]).tolist()
        for number, step in enumerate(self.steps):
            self.any_steps = True
            if finite[number]:
                self.bad_in_a_row = 0
                self.any_taken = True
            if not bad[number]:
                continue
            self.bad_in_a_row += 1
            if write:
                entry = {
                    "step": step.number,
                    "loss": losses[number],
                    "grad_norm": norms[number],
                    "predictions": int(counts[number]),
                    "samples": step.samples,
                }
                append(self.bad_steps, json.dumps(entry))
            if self.bad_in_a_row >= self.max_bad_steps:
                what = (
                    "gave a loss or gradient that is not finite"
                    if counts[number]
                    else "had nothing to predict (no token is hidden)"
                )
                error = (
                    f"{self.bad_in_a_row} steps in a row, up to step {step.number}, {what}; "
                    f"samples: {self.bad_steps}. {self._advice(bool(counts[number]))} "
                    f"(train.max_bad_steps={self.max_bad_steps})"
                )
        return error

    def check_any_taken(self) -> None:
        """ValueError: the run is at its end, and none of its steps was finite."""
        if self.any_steps and not self.any_taken:
            raise ValueError(f"no step of this run was finite; samples: {self.bad_steps}. {self._advice(True)}")

    def _advice(self, predicts: bool) -> str:
        if predicts:
            return "Lower train.lr, lengthen train.warmup_steps, or mend those samples"
        return "Hide more tokens (the settings of masks in data), or leave out those samples"


def _firsts(views: list[View]) -> dict[str, View]:
    """The first view of each part of a micro-batch."""
    return {view.part: view for view in reversed(views)}


def _num_samples(views: list[View]) -> int:
    """Of a micro-batch."""
    return sum(len(next(iter(view.inputs.values()))) for view in _firsts(views).values())


def _waits(views: list[View], waited: float) -> dict[str, float]:
    """What each part has of the seconds that were waited for a micro-batch, as of those that making it took."""
    took = {part: view.seconds for part, view in _firsts(views).items()}
    total = sum(took.values())
    return {part: waited * seconds / total if total else waited / len(took) for part, seconds in took.items()}


class History:
    """The run's records: a list, and lines of metrics.jsonl; those beyond the step it resumes from are dropped."""

    def __init__(self, path: Path, step: int, write: bool):
        self.path, self.write = path, write
        self.records: list[dict[str, Any]] = []
        if write and path.is_file() and step > 0:
            for line in path.read_text("utf-8", errors="replace").splitlines():
                record = _parse(line)
                if record is not None and record["step"] <= step:
                    self.records.append(record)
        if write:
            with written(path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in self.records))

    def add(self, record: dict[str, Any]) -> None:
        """One more record."""
        self.records.append(record)
        if self.write:
            append(self.path, json.dumps(record))


def of_name(records: list[dict], name: str) -> list[dict]:
    """Records as a run of the part `name` alone would have them; "": as they are."""
    if not name:
        return records
    found = []
    for record in records:
        own = {key.removeprefix(f"{name}/"): value for key, value in record.items() if key.startswith(f"{name}/")}
        shared = {key: value for key, value in record.items() if "/" not in key and key != "loss"}
        found.append({**shared, **own})
    return found


def _parse(line: str) -> dict | None:
    """A record of numbers by name, with its step; None where a kill or an editor left none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return record if all(isinstance(value, int | float) for value in record.values()) else None
