"""Labelled text for fine-tuning: single texts, <s> A </s>, and pairs, <s> A </s> </s> B </s>.

B rows of a batch, T tokens of the longest of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from d2v.finetuning.config import FinetuneConfig
from d2v.finetuning.labelled import Labelled
from d2v.modalities.common import labels, sources
from d2v.modalities.common.sampling import Sampler, share
from d2v.modalities.text import corpus as corpora
from d2v.modalities.text import tokenizer as tokenizers
from d2v.modalities.text.data import ReadConfig, collate, prepare_tokenizer, save_preprocessor
from d2v.modalities.text.frontend import FrontendConfig
from d2v.types import View


@dataclass
class DataConfig(ReadConfig, labels.SplitConfig):
    """Where labelled text is; `split` is the one to train on."""

    text_pair: str = ""  # the column with the second text of a pair
    regression: bool = False  # the label is a number


class Samples:
    """The usable rows of one split, tokenized once; rows of a single token are usable too."""

    def __init__(self, config: DataConfig, frontend: FrontendConfig, *, split: str, folder: Path):
        """ValueError: no data, no second column, or no tokenizer in `folder`."""
        tokenizer = tokenizers.read(folder)
        self.config, self.frontend = config, frontend
        self.dataset, column = corpora.open_rows(config.path, split, config.text)
        if config.text_pair and config.text_pair not in self.dataset.column_names:
            columns = ", ".join(self.dataset.column_names)
            raise ValueError(
                f"data.text_pair is {config.text_pair!r}, the second text of a pair; the columns of data.path {config.path} are {columns}"
            )
        self._parts = [
            corpora.tokenize(self.dataset, name, tokenizer, shortest=1) for name in (column, config.text_pair) if name
        ]
        usable = self._parts[0].rows if len(self._parts) == 1 else np.intersect1d(*(part.rows for part in self._parts))
        self._rows = usable  # (N,) numbers in the data set
        self._places = [
            np.searchsorted(part.rows, usable) for part in self._parts
        ]  # (N,) each: where a row is in its corpus
        every_id = sources.identifiers(self.dataset, config.path, split)
        self.ids = [every_id[row] for row in usable]
        self.report = corpora.report(self._parts[0], self.dataset, every_id, config.label)
        for part in self._parts[1:]:
            self.report.unreadable += [
                (every_id[row], f"{config.text_pair}: {reason}") for row, reason in part.unreadable
            ]
            self.report.too_short += [
                (every_id[row], f"{config.text_pair}: {reason}") for row, reason in part.too_short
            ]
        self.report.usable = len(usable)
        self.report.check(config.max_bad_share, config.path)
        self.classes = (
            sources.classes(self.dataset, config.label) if config.label in self.dataset.column_names else None
        )
        self.lengths = np.array([len(self._row(index)) for index in range(len(usable))])

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> np.ndarray:
        """Values of a column per usable row. ValueError: no such column."""
        return sources.column(self.dataset, name, self._rows, self.ids)

    def view(self, indices: Sequence[int], length: int = 0) -> View:
        """Rows padded to the longest or to `length`; the longer text of a pair that exceeds block_size is cut first."""
        return collate([self._row(index) for index in indices], self.frontend, length)

    def _row(self, index: int) -> np.ndarray:
        texts = []
        for part, places in zip(self._parts, self._places, strict=True):
            start, stop = part.offsets[places[index] : places[index] + 2]
            texts.append(part.tokens[start : stop - 1])
        sizes = [len(text) for text in texts]
        while sum(sizes) > self.config.block_size - 2 * len(texts):
            sizes[int(np.argmax(sizes))] -= 1
        bos, eos = self.frontend.bos_token_id, self.frontend.eos_token_id
        row = [bos]
        for number, (text, size) in enumerate(zip(texts, sizes, strict=True)):
            row += [eos] * (number > 0) + text[:size].tolist() + [eos]
        return np.array(row)


class Batches:
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
        return [view._replace(labels=torch.from_numpy(self._opened.labels[mine]))], [
            self._opened.train.ids[index] for index in mine
        ]


def open_data(
    config: FinetuneConfig, folder: Path, bad_log: Callable[[str, str], None], say: Callable[[str], None]
) -> Labelled:
    """The batches and splits of a run; nothing can turn out unreadable later. ValueError: as prepare_tokenizer, Samples and labels.open_splits."""
    data, frontend, train = config.data, config.frontend, config.train
    data.check_splits()
    prepare_tokenizer(data, frontend, folder)

    def make(split: str) -> Samples:
        samples = Samples(data, frontend, split=split, folder=folder)
        say("\n".join(samples.report.lines()))
        return samples

    opened = labels.open_splits(data, train.seed, make)
    return labels.labelled(
        opened,
        Batches(opened, train.batch_size, train.seed),
        lambda place: save_preprocessor(place, folder, data, frontend),
    )
