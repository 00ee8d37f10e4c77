"""Labelled text for fine-tuning: single texts, <s> A </s>, and pairs, <s> A </s> </s> B </s>.

B rows of a batch, T tokens of the longest of them.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from d2v.modalities.common import answers, labels, tables
from d2v.modalities.common.sampling import Sampler, share
from d2v.modalities.text import corpus as corpora
from d2v.modalities.text import tokenizer as tokenizers
from d2v.modalities.text.config import LabelledConfig
from d2v.modalities.text.frontend import FrontendConfig
from d2v.modalities.text.samples import collate, prepare_tokenizer, save_preprocessor, typical
from d2v.models.task_models import D2vForSequenceClassification
from d2v.protocols import Labelled, LabelledTask, Rows, Unlabelled
from d2v.types import View


class LabelledSamples:
    """The usable rows of one split, tokenized once; rows of a single token are usable too."""

    @staticmethod
    def open(config: LabelledConfig, split: str) -> datasets.Dataset:
        """The rows of a split, not read yet. ValueError: there are none, or they have no text."""
        return corpora.open_rows(config.path, split, config.text, config.sample_by, config.label)[0]

    def __init__(
        self,
        config: LabelledConfig,
        frontend: FrontendConfig,
        *,
        split: str,
        folder: Path,
        rows: Rows | None = None,
    ):
        """ValueError: no data, no second column, or no tokenizer in `folder`. `rows`: these only."""
        tokenizer = tokenizers.read(folder)
        self.config, self.frontend = config, frontend
        self.dataset, first = (self.open(config, split), 0) if rows is None else rows[:2]
        column = corpora.text_column(self.dataset, config.path, config.text, config.label)
        if config.text_pair and config.text_pair not in self.dataset.column_names:
            columns = ", ".join(self.dataset.column_names)
            raise ValueError(
                f"data.text_pair is {config.text_pair!r}, the second text of a pair; "
                f"the columns of data.path {config.path} are {columns}"
            )
        columns = [name for name in (column, config.text_pair) if name]
        texts = {name: corpora.tokenize(self.dataset, name, tokenizer, shortest=1) for name in columns}
        self._columns, self._corpora = columns, [*texts.values()]
        self.rows = functools.reduce(np.intersect1d, [corpus.rows for corpus in self._corpora])  # (N,)
        # (N,) each: where a row is in its corpus
        self._places = [np.searchsorted(corpus.rows, self.rows) for corpus in self._corpora]
        every_id = tables.identifiers(self.dataset, config.path, split, first)
        self.ids = [every_id[row] for row in self.rows]
        whole = sum(np.diff(corpus.offsets)[at] + 1 for corpus, at in zip(self._corpora, self._places, strict=True))
        self.lengths = np.minimum(whole, config.block_size)  # with <s> and </s>, of both texts of a pair
        self.report = corpora.report(texts, self.rows, self.dataset, every_id, config.label)
        self.report.sizes = typical(*np.unique(whole, return_counts=True), config.block_size)
        self.report.notes += [f"texts: the column {column!r} (data.text)"] if column != config.text else []
        self.cut = whole > config.block_size
        if config.regression:
            self.report.classes = None  # they are numbers
        if rows is None or rows.whole:
            self.report.check(config.max_bad_share, config.path)
        self.classes = corpora.classes(self.dataset, config.label)

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> np.ndarray:
        """Values of a column per usable row, None for missing ones. ValueError: no such column."""
        return tables.cells(self.dataset, name, self.rows)

    def picture(self, index: int) -> str:
        """The text as it is in the data, and below it the second of a pair."""
        row = self.dataset[int(self.rows[index])]
        return "\n".join(str(row[name]) for name in self._columns)

    def view(self, indices: Sequence[int], length: int = 0) -> View:
        """Rows padded to the longest or to `length`; the longer text of a pair that exceeds block_size is cut first."""
        return collate([self._row(index) for index in indices], self.frontend, length)

    def _row(self, index: int) -> np.ndarray:
        """<s> A </s>, or <s> A </s> </s> B </s>, of block_size tokens at most."""
        texts = []
        for corpus, places in zip(self._corpora, self._places, strict=True):
            start, stop = corpus.offsets[places[index] : places[index] + 2]
            texts.append(corpus.tokens[start : stop - 1])
        sizes = cut_sizes([len(text) for text in texts], self.config.block_size - 2 * len(texts))
        bos, eos = self.frontend.bos_token_id, self.frontend.eos_token_id
        row = [bos]
        for number, (text, size) in enumerate(zip(texts, sizes, strict=True)):
            if number:
                row.append(eos)
            row += [*text[:size].tolist(), eos]
        return np.array(row)


def cut_sizes(sizes: list[int], limit: int) -> list[int]:
    """Those of one or two texts that hold `limit` tokens together: tokens go one by one, each from the longer text."""
    if sum(sizes) <= limit:
        return sizes
    if len(sizes) == 1:
        return [limit]
    second = min(sizes[1], max(limit - limit // 2, limit - sizes[0]))  # of two as long the first is cut
    return [limit - second, second]


READ = ("path", "split", "max_bad_share", "text", "text_pair", "sample_by", "block_size", "label")
UNLABELLED = Unlabelled(LabelledSamples, answers.says, READ, answers.known)


class LabelledBatches:
    """Labelled rows of similar length: a pure function of (seed, step, part, parts)."""

    def __init__(self, opened: labels.Opened, batch_size: int, seed: int):
        """ValueError: fewer rows than one batch."""
        self._opened = opened
        self._lengths = opened.train.lengths[opened.indices]
        self.sampler = Sampler(len(opened.indices), batch_size, seed, lengths=self._lengths)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """This part's rows of the step's batch, as wide as the whole batch, with their labels (B,); the sample ids."""
        batch = self.sampler(step)
        mine = self._opened.indices[batch[share(len(batch), part, parts)]]
        view = self._opened.train.view(mine, int(self._lengths[batch].max()))
        view = view._replace(labels=torch.from_numpy(self._opened.labels[mine]))
        return [view], [self._opened.train.ids[index] for index in mine]


def labelled_task(data: dict) -> LabelledTask:
    """Single texts and pairs, classes and numbers: one kind."""
    return LabelledTask(LabelledConfig, D2vForSequenceClassification, open_data, unlabelled=UNLABELLED)


def open_data(config: Any, folder: Path, bad_log: Callable[[str, str], None], say: Callable[[str], None]) -> Labelled:
    """The batches and splits of a run; nothing can turn out bad later.

    ValueError: as prepare_tokenizer, LabelledSamples and labels.open_splits.
    """
    data, frontend, train = config.data, config.frontend, config.train
    data.check_splits()
    prepare_tokenizer(data, frontend, folder)

    def make(split: str) -> LabelledSamples:
        samples = LabelledSamples(data, frontend, split=split, folder=folder)
        say("\n".join(samples.report.lines()))
        return samples

    opened = labels.open_splits(data, train.seed, make)
    for note in opened.notes:
        say(note)
    batches = LabelledBatches(opened, train.batch_size, train.seed)
    return labels.labelled(opened, batches, lambda place: save_preprocessor(place, folder, data, frontend))
