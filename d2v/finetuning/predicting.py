"""What a fine-tuned model says of data without labels: part by part, into one csv.

T tokens of a sample, V letters.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from d2v import files
from d2v.evaluation.config import EmbedConfig
from d2v.evaluation.features import by_length
from d2v.evaluation.parts import Parts
from d2v.finetuning.rows import write_rows
from d2v.finetuning.validation import BATCH_SIZE
from d2v.models.task_models import TaskModel
from d2v.protocols import Known, Says, Stream
from d2v.reading import ahead, readable_views

OVERLAP = EmbedConfig().overlap  # of windows, where a sample is longer than what is read at once
CELLS = "cells"  # the column of a part that holds a row's cells as JSON: the columns of the csv are the model's


class Predictions(Parts):
    """Rows of predictions, kept in parts until they are one csv."""

    def add(self, number: int, rows: list[dict[str, Any]], bad: list[tuple[str, str]], inputs: str) -> None:
        """One part: its rows, ids of bad samples with the reason, a digest of its inputs."""
        cells = pa.array([json.dumps(row) for row in rows], pa.string())
        self.keep(number, pa.table({CELLS: cells}), bad, inputs)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Those of all parts."""
        for path in self.paths():
            for cells in pq.read_table(path)[CELLS].to_pylist():
                yield json.loads(cells)

    def join(self) -> int:
        """Writes `out` and removes the parts; of how many samples they were."""
        write_rows(self.out, self.rows())
        samples = sum(1 for _ in itertools.groupby(self.rows(), lambda row: row["id"]))
        files.record_results([self.out])
        files.remove_folder(self.folder)
        return samples


def predict_all(
    model: TaskModel,
    says: Says,
    open_part: Callable[[int, int], Any],
    inputs_of: Callable[[int, int], str],
    total: int,
    predictions: Predictions,
    known: Known | None = None,
) -> None:
    """Rows of `total` samples into `predictions`; parts of the same inputs that are there already stay.

    `open_part(start, stop)`: those samples, Stream and Rowed; `inputs_of(start, stop)`: a digest of what they are made
    of; `known`: the labels of all, which become a column.
    """
    size = EmbedConfig().chunk
    for number, start in enumerate(tqdm(range(0, total, size), unit="part", disable=None)):
        stop = min(start + size, total)
        inputs = inputs_of(start, stop)
        if not predictions.has(number, inputs):
            samples = open_part(start, stop)
            bad: list[tuple[str, str]] = [*samples.report.unreadable, *samples.report.too_short]
            found, rows = answers(model, samples, bad), []
            for index in sorted(found):
                first = {"id": samples.ids[index]}
                if known is not None:
                    first[known.name] = known.values[start + int(samples.rows[index])]
                rows += [{**first, **cells} for cells in says(samples, index, found[index])]
            predictions.add(number, rows, bad, inputs)


def scores(known: Known, rows: Iterable[dict[str, Any]]) -> tuple[dict[str, float], int]:
    """Those of the rows that have a label, and how many they are."""
    labelled = [row for row in rows if row[known.name] is not None]
    return known.score([row[known.name] for row in labelled], labelled) if labelled else {}, len(labelled)


@torch.no_grad()
def answers(model: TaskModel, samples: Stream, bad: list[tuple[str, str]]) -> dict[int, np.ndarray]:
    """What a model says of each sample, by its number; see TaskModel.answers. What cannot be read goes to `bad`.

    Samples are read as a run scores them, but that a model of tokens reads all windows of a long one.
    """
    found: dict[int, np.ndarray] = {}
    longer = samples.cut if model.answers_tokens and samples.cut is not None else np.zeros(len(samples), dtype=bool)
    indices = np.arange(len(samples))
    batches = by_length(samples.lengths, BATCH_SIZE, np.flatnonzero(~longer))
    for places, view in ahead(readable_views(samples, indices, batches, lambda *why: bad.append(why))):
        for place, answer in zip(places.tolist(), model.answers(view.to(model.device)), strict=True):
            found[place] = answer
    for index in np.flatnonzero(longer).tolist():
        try:
            found[index] = _of_windows(model, samples, index)
        except ValueError as error:
            bad.append((samples.ids[index], str(error)))
    for index, answer in [*found.items()]:
        if not np.isfinite(answer).all():
            bad.append((samples.ids[index], "what the model says of it is not finite: is the model damaged?"))
            del found[index]
    return found


def _of_windows(model: TaskModel, samples: Stream, index: int) -> np.ndarray:
    """Logits (T, V) of a long sample, each token's from the window where it is farther from the border."""
    pieces = []
    for view, counted in samples.windows(index, OVERLAP, BATCH_SIZE):
        logits = model(view.to(model.device)).logits.float().cpu()
        pieces += [one[which].numpy() for one, which in zip(logits, counted.cpu(), strict=True)]
    return np.concatenate(pieces)
