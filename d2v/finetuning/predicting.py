"""What a fine-tuned model says of data without labels: part by part, into one table.

T tokens of a sample, V letters.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from d2v import files
from d2v.evaluation.features import by_length
from d2v.evaluation.parts import Parts
from d2v.files import written
from d2v.finetuning.rows import write_rows
from d2v.finetuning.validation import BATCH_SIZE
from d2v.models.task_models import TaskModel
from d2v.protocols import Known, Says, Stream
from d2v.reading import ahead, readable_views

CHUNK = 1024  # samples of a part
OVERLAP = 0.1  # of windows, where a sample is longer than what is read at once
FORMATS = (".csv", ".parquet")


class Predicted(NamedTuple):
    """One sample: its row in the source, its id, whether a part of it was left unread, and what is said of it."""

    row: int
    name: str
    cut: bool
    cells: list[dict[str, Any]]  # of one row of the table, or of several


class Predictions(Parts):
    """Predicted samples, kept in parts until they are one table."""

    def add(self, number: int, samples: list[Predicted], bad: list[tuple[str, str]], inputs: str) -> None:
        """One part: its samples, ids of bad ones with the reason, a digest of its inputs."""
        columns = zip(*samples, strict=True) if samples else ([], [], [], [])
        row, name, cut, cells = columns
        table = {
            "row": pa.array(row, pa.int64()),
            "name": pa.array(name, pa.string()),
            "cut": pa.array(cut, pa.bool_()),
            "cells": pa.array([json.dumps(one) for one in cells], pa.string()),  # columns differ from model to model
        }
        self.keep(number, pa.table(table), bad, inputs)

    def __iter__(self) -> Iterator[Predicted]:
        """Those of all parts."""
        for path in self.paths():
            yield from _read(path)

    def join(self, columns: Mapping[str, Sequence[Any]]) -> None:
        """Writes `out` and removes the parts; `columns`: others of the table, by name, of each row of the source."""
        if self.out.suffix == ".csv":
            write_rows(self.out, itertools.chain.from_iterable(self._parts(columns)))
        else:
            schemas = [pa.Table.from_pylist(rows).schema for rows in self._parts(columns)]
            schema = pa.unify_schemas(schemas, promote_options="permissive")
            with written(self.out) as draft, pq.ParquetWriter(draft, schema) as writer:
                for rows in self._parts(columns):
                    writer.write_table(pa.Table.from_pylist(rows, schema))
        files.record_results([self.out])
        files.remove_folder(self.folder)

    def _parts(self, columns: Mapping[str, Sequence[Any]]) -> Iterator[list[dict[str, Any]]]:
        """The rows of each part that has some."""
        for path in self.paths():
            rows = []
            for one in _read(path):
                beside = {name: values[one.row] for name, values in columns.items()}
                rows += [{"id": one.name, **beside, **cells} for cells in one.cells]
            if rows:
                yield rows


def _read(path: Path) -> Iterator[Predicted]:
    """The samples of a part."""
    for one in pq.read_table(path).to_pylist():
        yield Predicted(one["row"], one["name"], one["cut"], json.loads(one["cells"]))


def predict_split(
    model: TaskModel,
    says: Says,
    open_part: Callable[[int, int], Any],
    inputs_of: Callable[[int, int], str],
    total: int,
    predictions: Predictions,
    *,
    first: int,
    before: int,
) -> int:
    """What is said of the `total` samples of a split into `predictions`; parts of the same inputs that are there stay.

    `open_part(start, stop)`: those samples, Stream and Rowed; `inputs_of(start, stop)`: a digest of what they are made
    of; `first`: the number of the first part; `before`: rows of the splits before. The number of the part that follows.
    """
    for number, start in enumerate(tqdm(range(0, total, CHUNK), unit="part", disable=None), first):
        stop = min(start + CHUNK, total)
        inputs = f"{before} {inputs_of(start, stop)}"  # rows are counted from the first split on
        if not predictions.has(number, inputs):
            samples = open_part(start, stop)
            bad: list[tuple[str, str]] = [*samples.report.unreadable, *samples.report.too_short]
            said = {}
            for index, answer in answers(model, samples, bad):
                is_cut = samples.cut is not None and bool(samples.cut[index]) and not model.answers_tokens
                row = before + start + int(samples.rows[index])
                said[index] = Predicted(row, samples.ids[index], is_cut, says(samples, index, answer))
            predictions.add(number, [said[index] for index in sorted(said)], bad, inputs)
    return first - (-total // CHUNK)


def scores(known: Known, predictions: Predictions) -> tuple[dict[str, float], int]:
    """Those of the samples whose label is scored, and how many they are."""
    wanted, found = [], []
    for one in predictions:
        if known.wanted[one.row] is not None:
            wanted.append(known.wanted[one.row])
            found.append(one.cells)
    return known.score(wanted, found) if found else {}, len(found)


@torch.no_grad()
def answers(model: TaskModel, samples: Stream, bad: list[tuple[str, str]]) -> Iterator[tuple[int, np.ndarray]]:
    """Numbers of samples and what a model says of each; see TaskModel.answers. What cannot be read goes to `bad`.

    Samples are read as a run scores them, but that a model of tokens reads all windows of a long one.
    """
    for index, answer in _answers(model, samples, bad):
        if np.isfinite(answer).all():
            yield index, answer
        else:
            bad.append((samples.ids[index], "what the model says of it is not finite: is the model damaged?"))


def _answers(model: TaskModel, samples: Stream, bad: list[tuple[str, str]]) -> Iterator[tuple[int, np.ndarray]]:
    longer = samples.cut if model.answers_tokens and samples.cut is not None else np.zeros(len(samples), dtype=bool)
    batches = by_length(samples.lengths, BATCH_SIZE, np.flatnonzero(~longer))
    every = np.arange(len(samples))
    for indices, view in ahead(readable_views(samples, every, batches, lambda *why: bad.append(why))):
        yield from zip(indices.tolist(), model.answers(view.to(model.device)), strict=True)
    for index in np.flatnonzero(longer).tolist():
        try:
            answer = _of_windows(model, samples, index)
        except ValueError as error:
            bad.append((samples.ids[index], str(error)))
        else:
            yield index, answer


def _of_windows(model: TaskModel, samples: Stream, index: int) -> np.ndarray:
    """Logits (T, V) of a long sample, each token's from the window where it is farther from the border."""
    pieces = []
    for view, counted in samples.windows(index, OVERLAP, BATCH_SIZE):
        logits = model(view.to(model.device)).logits.float().cpu()
        pieces += [one[which].numpy() for one, which in zip(logits, counted.cpu(), strict=True)]
    return np.concatenate(pieces)
