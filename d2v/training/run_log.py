"""What a run writes down: means between log lines, steps that were not finite, and metrics.jsonl."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2v.files import written
from d2v.training.distributed import all_sum, mean_of_metrics


class Meter:
    """What happened since the last log line, kept on the device until then."""

    def __init__(self, bad_steps: Path, max_bad_steps: int):
        self.bad_steps, self.max_bad_steps = bad_steps, max_bad_steps
        self.bad_in_a_row = 0
        self._clear()

    def _clear(self) -> None:
        self.metrics: dict[str, Tensor] = {}
        self.steps: list[tuple[int, Tensor, Tensor, Tensor, list[str]]] = []
        self.rates: dict[str, float] = {}
        self.micro, self.waited, self.samples, self.start = 0, 0.0, 0, time.perf_counter()

    def add_micro(self, metrics: dict[str, Tensor], waited: float, samples: int) -> None:
        """One micro-batch."""
        for name, value in metrics.items():
            self.metrics[name] = self.metrics[name] + value.detach() if name in self.metrics else value.detach()
        self.micro, self.waited, self.samples = self.micro + 1, self.waited + waited, self.samples + samples

    def add_step(
        self, step: int, loss: Tensor, norm: Tensor, finite: Tensor, ids: list[str], rates: dict[str, float]
    ) -> None:
        """One optimizer step."""
        self.steps.append((step, loss, norm, finite, ids))
        self.rates = rates

    def flush(self, write: bool) -> tuple[dict[str, float], dict[str, float], str | None]:
        """Means since the last call, speeds, and what must stop the run; non-finite steps are written down with their samples."""
        loss, norm, finite = (torch.stack([entry[i] for entry in self.steps]).cpu() for i in (1, 2, 3))
        error = None
        for (step, _, _, _, ids), one_loss, one_norm, good in zip(
            self.steps, loss.tolist(), norm.tolist(), finite.tolist(), strict=True
        ):
            self.bad_in_a_row = 0 if good else self.bad_in_a_row + 1
            if not good and write:
                with self.bad_steps.open("a") as file:
                    file.write(
                        json.dumps({"step": step, "loss": one_loss, "grad_norm": one_norm, "samples": ids}) + "\n"
                    )
            if self.bad_in_a_row >= self.max_bad_steps:
                error = (
                    f"{self.bad_in_a_row} steps in a row, up to step {step}, gave a loss or gradient that is not finite; samples: "
                    f"{self.bad_steps}. Lower train.lr, lengthen train.warmup_steps, or mend those samples (train.max_bad_steps={self.max_bad_steps})"
                )
        good = finite if finite.any() else torch.ones_like(finite)
        metrics = mean_of_metrics({name: value / self.micro for name, value in self.metrics.items()})
        record = {
            "loss": loss[good].mean().item(),
            "grad_norm": norm[good].mean().item(),
            **{name: value.item() for name, value in metrics.items()},
        }
        seconds = max(time.perf_counter() - self.start, 1e-9)
        samples = all_sum(torch.tensor(float(self.samples), device=self.steps[0][1].device)).item()
        speed = {"samples_per_second": samples / seconds, "data_wait": self.waited / seconds, "seconds": seconds}
        record |= self.rates | {"skipped": float((~finite).sum())}
        self._clear()
        return record, speed, error


class History:
    """The run's records: a list, and lines of metrics.jsonl; what lies beyond the step that a run resumes from is dropped."""

    def __init__(self, path: Path, step: int, write: bool):
        self.path, self.write = path, write
        self.records: list[dict[str, Any]] = []
        if write and path.is_file():
            lines = (_parse(line) for line in path.read_text().splitlines())
            self.records = [record for record in lines if record is not None and record["step"] <= step and step > 0]
        if write:
            with written(path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in self.records))

    def add(self, record: dict[str, Any]) -> None:
        """One more record."""
        self.records.append(record)
        if self.write:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def _parse(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:  # cut off by a kill
        return None
