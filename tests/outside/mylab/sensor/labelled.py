"""Labelled signals for fine-tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from d2v.modalities.common import labels, sampling
from d2v.models.task_models import D2vForSequenceClassification
from d2v.protocols import BadLog, Labelled, LabelledTask
from d2v.types import View
from mylab.sensor.config import LabelledConfig
from mylab.sensor.samples import Samples, save_preprocessor


def labelled_task(data: dict) -> LabelledTask:
    """There is one kind."""
    return LabelledTask(LabelledConfig, D2vForSequenceClassification, open_data)


def open_data(config: Any, folder: Path, bad_log: BadLog, say: Callable[[str], None]) -> Labelled:
    """The batches and splits of a run."""
    data, frontend = config.data, config.frontend

    def make(split: str) -> Samples:
        samples = Samples(data, frontend, split=split, folder=folder)
        say("\n".join(samples.report.lines()))
        return samples

    opened = labels.open_splits(data, config.train.seed, make)
    for note in opened.notes:
        say(note)
    sampler = sampling.Sampler(len(opened.indices), config.train.batch_size, config.train.seed)

    def batches(step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        batch = sampler(step)
        indices = opened.indices[batch[sampling.share(len(batch), part, parts)]]
        view = opened.train.view(indices)._replace(labels=torch.as_tensor(opened.labels[indices]))
        return [view], [opened.train.ids[index] for index in indices]

    return labels.labelled(opened, batches, lambda place: save_preprocessor(place, folder, data, frontend))
