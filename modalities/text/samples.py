"""Rows of text -> tokenized samples -> evaluation views; the tokenizer of a run.

B rows of a batch, T tokens of the longest of them, with <s> before and </s> after every line.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor

from d2v.modalities.common import tables
from d2v.modalities.common.sampling import Chosen
from d2v.modalities.common.windows import counted, cut
from d2v.modalities.text import corpus as corpora
from d2v.modalities.text import tokenizer as tokenizers
from d2v.modalities.text.config import DataConfig, ReadConfig, check
from d2v.modalities.text.frontend import MODALITY, FrontendConfig
from d2v.modalities.text.kept import corpus_of, lengths_of, trained
from d2v.protocols import Rows
from d2v.types import View


class Samples:
    """The usable rows of one split, tokenized once."""

    raw_name = "bag of tokens"

    @staticmethod
    def open(config: DataConfig, split: str) -> datasets.Dataset:
        """The rows of a split, not read yet. ValueError: there are none, or they have no text."""
        return corpora.open_rows(config.path, split, config.text, config.sample_by, config.label)[0]

    def __init__(
        self,
        config: DataConfig,
        frontend: FrontendConfig,
        *,
        split: str,
        folder: Path,
        rows: Rows | None = None,
    ):
        """ValueError: no data, no tokenizer in `folder`, or one that does not fit the model. `rows`: these only."""
        tokenizer = tokenizers.of(folder, config.tokenizer)
        if len(tokenizer) > frontend.vocab_size:
            raise ValueError(
                f"the tokenizer of {folder} has {len(tokenizer)} tokens, "
                f"the model frontend.vocab_size {frontend.vocab_size}"
            )
        self.config, self.frontend, self.split = config, frontend, split
        self.dataset, first = (self.open(config, split), 0) if rows is None else rows[:2]
        self._column = corpora.text_column(self.dataset, config.path, config.text, config.label)
        if rows is None:
            self.corpus = corpus_of(self.dataset, self._column, tokenizer, config, split, config.min_tokens)
        else:
            self.corpus = corpora.tokenize(self.dataset, self._column, tokenizer, config.min_tokens)
        self.origin = self.corpus.digest
        self.ordinary = np.array(tokenizers.ordinary_ids(tokenizer))
        every_id = tables.identifiers(self.dataset, config.path, split, first)
        self.ids = Chosen(every_id, self.corpus.rows)
        self.report = corpora.report(
            {self._column: self.corpus}, self.corpus.rows, self.dataset, every_id, config.label
        )
        if rows is None or rows.whole:
            self.report.notes += corpora.further_notes(self.report, self.corpus, self.dataset, config.path)
            self.report.check(config.max_bad_share, config.path)
        self.classes = corpora.classes(self.dataset, config.label)
        self.lengths, *sizes = lengths_of(self.corpus, config.block_size)
        self.report.sizes = typical(*sizes, config.block_size)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> np.ndarray:
        """(n,) which rows of the source they are."""
        return self.corpus.rows

    @property
    def cut(self) -> np.ndarray:
        """Which are longer than what is read at once, (n,) bool."""
        return np.diff(self.corpus.offsets) + 1 > self.config.block_size  # with <s>

    def column(self, name: str) -> np.ndarray:
        """Values of a column per usable row, None for missing ones. ValueError: no such column."""
        return tables.cells(self.dataset, name, self.corpus.rows)

    def view(self, indices: Sequence[int]) -> View:
        """Rows as <s> ... </s>, cut to block_size, nothing hidden."""
        return collate([self.row(index) for index in indices], self.frontend)

    def windows(self, index: int, overlap: float, batch_size: int) -> Iterator[tuple[View, Tensor]]:
        """A row in windows of block_size, `batch_size` at a time, and their tokens that count, (B, T).

        Neighbours share `overlap` of a window. Each window is <s> ... </s>, as a row is; each token of the whole row
        counts once, in the window where it is farther from the border.
        """
        start, stop = self.corpus.offsets[index : index + 2]
        windows = cut(int(stop - start) + 1, self.config.block_size, overlap)  # of the row as <s> ... </s>
        for place in range(0, len(windows), batch_size):
            some = windows[place : place + batch_size]
            rows = [self._between(start + window.start, start + window.stop - 2) for window in some]
            yield collate(rows, self.frontend), counted(some)

    def raw(self, indices: Sequence[int]) -> np.ndarray:
        """Counts of the tokens of each row, scaled to length 1, (n, vocab_size)."""
        counts = np.zeros((len(indices), self.frontend.vocab_size), dtype=np.float32)
        for count, index in zip(counts, indices, strict=True):
            np.add.at(count, self.row(index)[1:-1], 1)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    def picture(self, index: int) -> str:
        """The text as it is in the data."""
        return str(self.dataset[int(self.corpus.rows[index])][self._column])

    def row(self, index: int) -> np.ndarray:
        """<s> ... </s>, cut to block_size."""
        start, stop = self.corpus.offsets[index : index + 2]
        return self._between(start, min(stop - 1, start + self.config.block_size - 2))

    def _between(self, start: int, stop: int) -> np.ndarray:
        """<s>, the corpus's tokens from `start` to `stop`, </s>."""
        return np.append(block(self.corpus.tokens[start:stop], self.frontend), self.frontend.eos_token_id)


def queries(given: Sequence[str], data: DataConfig, frontend: FrontendConfig, folder: Path) -> Samples:
    """Words that are no data, as samples in their order: what is looked for, names of classes.

    ValueError: none are in one.
    """
    texts = [" ".join(text.split()) for text in given]  # on one line, as data is
    if "" in texts:
        raise ValueError(f"{given[texts.index('')]!r} has no words")
    rows = datasets.Dataset.from_dict({"text": texts})
    data = replace(data, text="text", min_tokens=1)
    return Samples(data, frontend, split=data.split, folder=folder, rows=Rows(rows, 0))


def typical(numbers: np.ndarray, counts: np.ndarray, longest: int) -> str:
    """What is said of the tokens of texts beside what is read at once, of their sizes (Z,), sorted, and how often each.

    "" of no texts.
    """
    total = int(counts.sum())
    if not total:
        return ""
    before, after = numbers[np.searchsorted(counts.cumsum(), [(total - 1) // 2, total // 2], "right")].tolist()
    longer = int(counts[numbers > longest].sum())
    said = f"typical text: {(before + after) // 2} tokens, up to {longest} are read at once"
    return f"{said}; {longer} texts are longer" if longer else said


def block(tokens: np.ndarray, frontend: FrontendConfig) -> np.ndarray:
    """<s> and the tokens."""
    return np.concatenate([[frontend.bos_token_id], tokens])


def collate(rows: Sequence[np.ndarray], frontend: FrontendConfig, length: int = 0) -> View:
    """Rows padded on the right to the longest or to `length`."""
    length = max([length, *map(len, rows)])
    ids = np.full((len(rows), length), frontend.pad_token_id, dtype=np.int64)
    real = np.zeros((len(rows), length), dtype=bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        real[number, : len(row)] = True
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real.astype(np.int64))}
    return View(MODALITY, inputs, None if real.all() else torch.from_numpy(~real), None)


def prepare(data: DataConfig, frontend: FrontendConfig, folder: Path, seed: int) -> None:
    """The tokenizer of a run, see prepare_tokenizer. ValueError: also settings that contradict one another."""
    check(data)
    prepare_tokenizer(data, frontend, folder)


def prepare_tokenizer(
    data: ReadConfig,
    frontend: FrontendConfig,
    folder: Path,
    source: Callable[[], datasets.Dataset] | None = None,
) -> None:
    """Trains or adapts the tokenizer into folder/tokenizer unless `folder` has one, and fills in the frontend.

    `source` opens the rows of data.path, if others have them. ValueError: no data, blocks longer than the model reads,
    no such tokenizer, or other ids of special tokens than its.
    """
    if not data.path:
        raise ValueError(
            "data.path is required: text files, a table (parquet, csv, jsonl), a Hub data set, "
            'a list of these, or "demo"'
        )
    if not 4 <= data.block_size <= frontend.max_positions:
        raise ValueError(
            f"data.block_size {data.block_size} must lie in 4 ... frontend.max_positions, "
            f"which is {frontend.max_positions}"
        )
    if tokenizers.find(folder) is None:
        if data.tokenizer:
            tokenizer = tokenizers.load(data.tokenizer)
        else:
            dataset = source() if source else Samples.open(data, data.split)
            column = corpora.text_column(dataset, data.path, data.text, data.label)
            tokenizer = trained(dataset, column, data, whole=source is None)
        tokenizer.model_max_length = frontend.max_positions
        tokenizers.save(tokenizer, folder)
    tokenizer = tokenizers.read(folder)
    if 0 < frontend.vocab_size < len(tokenizer):
        raise ValueError(
            f"frontend.vocab_size is {frontend.vocab_size}, the tokenizer of {folder} has {len(tokenizer)} tokens"
        )
    frontend.vocab_size = frontend.vocab_size or len(tokenizer)  # a larger one stays: tables may be rounded up
    for name in ("bos_token_id", "pad_token_id", "eos_token_id", "mask_token_id"):
        given, found = getattr(frontend, name), getattr(tokenizer, name)
        if given not in (vars(FrontendConfig)[name], found):
            which = data.tokenizer or "one that is trained on the data"
            raise ValueError(
                f"model.frontends.text.{name} is {given}, that of data.tokenizer, {which}, is {found}: of a model that "
                "is gone on from name its own tokenizer; else leave the setting out"
            )
        setattr(frontend, name, found)


def save_preprocessor(folder: Path, samples_folder: Path, data: ReadConfig, frontend: FrontendConfig) -> None:
    """The tokenizer's files, so that AutoTokenizer.from_pretrained(folder) works."""
    tokenizers.copy(samples_folder, folder)


def inherit(data: ReadConfig, source: Path, former: dict | None) -> None:
    """Weights are of their tokens, and of so many: fills tokenizer, and block_size where it is above the model's.

    A tokenizer that is given and equal stays. ValueError: `source` brings none, and none is given.
    """
    if former is not None:
        data.tokenizer, data.block_size = former["tokenizer"], former["block_size"]
        return
    place = tokenizers.of_model(source)
    if place is None and not data.tokenizer:
        raise ValueError(
            f"{source} brings no tokenizer; name the one that it was trained with, data.tokenizer=FOLDER or a Hub name"
        )
    if place is None:
        return
    if not data.tokenizer or not tokenizers.same(data.tokenizer, place):
        data.tokenizer = place
    data.block_size = min(data.block_size, tokenizers.longest(place))
