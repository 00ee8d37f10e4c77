"""Text samples: rows for evaluation; for pretraining blocks of rows with span masks, or views of single rows.

B rows of a batch, T tokens of the longest of them, with <s> before and </s> after every line.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from d2v.modalities.common import masking, sources
from d2v.modalities.common.checks import check_masked_views, check_unread
from d2v.modalities.common.sampling import Sampler, share
from d2v.modalities.common.windows import counted, cut
from d2v.modalities.text import corpus as corpora
from d2v.modalities.text import tokenizer as tokenizers
from d2v.modalities.text.frontend import FrontendConfig
from d2v.modalities.text.views import AugmentConfig, check_augment, made
from d2v.types import Mask, View

NAME = "text"
BREAK_MODES = ("complete_doc", "none", "shuffled")
MASK_KINDS = ("span", "random")


@dataclass
class ReadConfig:
    """Text files (one line or paragraph each line, an empty line between documents), tables with a text column, Hub data sets, or "demo"."""

    path: Any = ""
    split: str = "train"
    max_bad_share: float = 0.1
    text: str = "text"  # the column with the text
    label: str = "label"  # the column with the class, if there is one
    tokenizer: str | None = None  # a folder or a Hub name; None: a byte-level BPE is trained on the data
    vocab_size: int = 8192  # of the BPE that is trained
    block_size: int = 512  # tokens, with <s>


@dataclass
class DataConfig(ReadConfig):
    """The same for pretraining, how rows are joined into blocks, and what is hidden in them."""

    # complete_doc: blocks hold whole lines of one document; none: the stream is cut every block_size tokens; shuffled: whole rows in a random order,
    # for rows that have nothing to do with each other. A file that is sorted by class would give the class away in every block.
    break_mode: str = "complete_doc"
    mask_kind: str = "span"  # span: overlapping spans (1.0); random: counts fixed by the length, and what is hidden is left out (2.0)
    masks: int = 1  # masks per block, of random
    mask_prob: float = 0.35
    mask_length: int = 4  # of span
    random_token_prob: float = 0.0  # BERT's variant: mask_prob 0.15, mask_length 1, 0.1 and 0.1
    keep_token_prob: float = 0.0
    reference_teacher_input: bool = (
        False  # the reference's bug (fairseq issue 4881): its teacher reads the hidden tokens only, side by side
    )
    # one reading of each row a name, for methods that compare them: same, deletion, crop; a sample is a row then
    views: list[str] = field(default_factory=list)
    mask_views: bool = False  # spans are hidden in this share of each view's rows (iBOT); else views hide nothing
    mask_chance: float = 0.5
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # how views are made


class Samples:
    """The usable rows of one split, tokenized once."""

    raw_name = "bag of tokens"

    @staticmethod
    def open(config: DataConfig, split: str) -> datasets.Dataset:
        """The rows of a split, not read yet. ValueError: there are none, or they have no text."""
        return corpora.open_rows(config.path, split, config.text)[0]

    def __init__(
        self,
        config: DataConfig,
        frontend: FrontendConfig,
        *,
        split: str,
        folder: Path,
        rows: sources.Rows | None = None,
    ):
        """ValueError: no data, no tokenizer in `folder`, or one that does not fit the model. `rows`: these only."""
        tokenizer = tokenizers.read(folder)
        if len(tokenizer) > frontend.vocab_size:
            raise ValueError(
                f"the tokenizer of {folder} has {len(tokenizer)} tokens, the model frontend.vocab_size {frontend.vocab_size}"
            )
        self.config, self.frontend, self.split = config, frontend, split
        self.dataset, first = (self.open(config, split), 0) if rows is None else rows
        column = corpora.text_column(self.dataset, config.path, config.text)
        self.corpus = corpora.tokenize(self.dataset, column, tokenizer)
        self.ordinary = np.array(tokenizers.ordinary_ids(tokenizer))
        every_id = sources.identifiers(self.dataset, config.path, split, first)
        self.ids = [every_id[row] for row in self.corpus.rows]
        self.report = corpora.report(self.corpus, self.dataset, every_id, config.label)
        if rows is None:
            self.report.check(config.max_bad_share, config.path)
        self.classes = (
            sources.classes(self.dataset, config.label) if config.label in self.dataset.column_names else None
        )
        sizes = np.diff(self.corpus.offsets) + 1  # with <s>
        self.lengths, self.cut = np.minimum(sizes, config.block_size), sizes > config.block_size

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> np.ndarray:
        """Values of a column per usable row. ValueError: no such column."""
        return sources.column(self.dataset, name, self.corpus.rows, self.ids)

    def view(self, indices: Sequence[int]) -> View:
        """Rows as <s> ... </s>, cut to block_size, nothing hidden."""
        return collate([self.row(index) for index in indices], self.frontend)

    def windows(self, index: int, overlap: float, batch_size: int) -> Iterator[tuple[View, Tensor]]:
        """A row in windows of block_size that share `overlap` of themselves, `batch_size` at a time, and their tokens that count, (B, T).

        Each window is <s> ... </s>, as a row is; each token of the whole row counts once, in the window where it is farther from the border.
        """
        start, stop = self.corpus.offsets[index : index + 2]
        windows = cut(int(stop - start) + 1, self.config.block_size, overlap)  # of the row as <s> ... </s>
        for some in (windows[place : place + batch_size] for place in range(0, len(windows), batch_size)):
            rows = [
                np.append(
                    block(self.corpus.tokens[start + w.start : start + w.stop - 2], self.frontend),
                    self.frontend.eos_token_id,
                )
                for w in some
            ]
            yield collate(rows, self.frontend), counted(some)

    def raw(self, indices: Sequence[int]) -> np.ndarray:
        """Counts of the tokens of each row, scaled to length 1, (n, vocab_size)."""
        counts = np.zeros((len(indices), self.frontend.vocab_size), dtype=np.float32)
        for count, index in zip(counts, indices, strict=True):
            np.add.at(count, self.row(index)[1:-1], 1)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    def row(self, index: int) -> np.ndarray:
        """<s> ... </s>, cut to block_size."""
        start, stop = self.corpus.offsets[index : index + 2]
        tokens = self.corpus.tokens[start : min(stop - 1, start + self.config.block_size - 2)]
        return np.append(block(tokens, self.frontend), self.frontend.eos_token_id)


class Batches:
    """Blocks with their masks: a pure function of (seed, step)."""

    def __init__(self, samples: Samples, data: DataConfig, batch_size: int, seed: int):
        """ValueError: fewer blocks than one batch."""
        self.samples, self.data, self.seed = samples, data, seed
        corpus = corpora.shuffled(samples.corpus, seed) if data.break_mode == "shuffled" else samples.corpus
        self.tokens, self.blocks = (
            corpus.tokens,
            corpora.blocks(corpus, data.block_size - 1, data.break_mode),
        )  # (S,), (num_blocks, 2)
        if len(self.blocks) < batch_size:
            raise ValueError(
                f"data.path {data.path} makes {len(self.blocks)} blocks of data.block_size {data.block_size} tokens, "
                f"fewer than one batch: train.batch_size is {batch_size}"
            )
        self.sampler = Sampler(len(self.blocks), batch_size, seed)
        self.steps_per_epoch = len(self.sampler)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """The masked view of this part's blocks, padded to the longest of the whole batch, and the blocks' names."""
        batch = self.sampler(step)
        mine = share(len(batch), part, parts)
        longest = int(np.diff(self.blocks[batch]).max()) + 1
        frontend = self.samples.frontend
        view = collate(
            [block(self.tokens[start:stop], frontend) for start, stop in self.blocks[batch[mine]]], frontend, longest
        )
        generators = masking.generators(self.seed, step, range(len(batch))[mine])
        if self.data.mask_kind == "random":
            return [leave_out(view, generators, self.data)], [
                f"{self.samples.split}:block {index}" for index in batch[mine]
            ]
        view = hide(view, generators, self.data, self.samples)
        views = [view, hidden_only(view, self.samples.frontend)] if self.data.reference_teacher_input else [view]
        return views, [f"{self.samples.split}:block {index}" for index in batch[mine]]


class ViewBatches:
    """Rows of similar length, each in one view for each name in data.views: a pure function of (seed, step, part, parts)."""

    def __init__(self, samples: Samples, data: DataConfig, batch_size: int, seed: int):
        """ValueError: fewer rows than one batch."""
        self.samples, self.data, self.seed = samples, data, seed
        self.sampler = Sampler(len(samples), batch_size, seed, lengths=samples.lengths)
        self.steps_per_epoch = len(self.sampler)

    def __call__(self, step: int, part: int, parts: int) -> tuple[list[View], list[str]]:
        """The views of this part's rows, padded to the longest row of the whole batch, with the rows' numbers; their ids."""
        batch = self.sampler(step)
        places = range(len(batch))[share(len(batch), part, parts)]
        mine, longest = batch[places], int(self.samples.lengths[batch].max())
        generators = masking.generators(self.seed, step, places)
        drawn = [self._row(index, own) for index, own in zip(mine, generators, strict=True)]
        indices = torch.from_numpy(mine)
        views = [
            collate(rows, self.samples.frontend, longest)._replace(indices=indices) for rows in zip(*drawn, strict=True)
        ]
        if self.data.mask_views:
            views = [
                view._replace(mask=self._mask(rows, generators, longest))
                for view, rows in zip(views, zip(*drawn, strict=True), strict=True)
            ]
        return views, [self.samples.ids[index] for index in mine]

    def _row(self, index: int, generator: np.random.Generator) -> list[np.ndarray]:
        """The views of a row; each draws from a generator of its own."""
        row, names = self.samples.row(index), self.data.views
        return [
            made(name, row, own, self.data.augment)
            for name, own in zip(names, generator.spawn(len(names)), strict=True)
        ]

    def _mask(self, rows: Sequence[np.ndarray], generators: Sequence[np.random.Generator], longest: int) -> Mask:
        """Spans of a view's rows, over every token, in a share of them."""
        data = self.data
        hidden = [
            masking.sometimes(
                g, data.mask_chance, masking.span(g, len(row), data.mask_prob, data.mask_length, last_frame=True)
            )
            for row, g in zip(rows, generators, strict=True)
        ]
        return Mask(torch.from_numpy(masking.stacked(hidden, longest)))


def block(tokens: np.ndarray, frontend: FrontendConfig) -> np.ndarray:
    """<s> and the tokens."""
    return np.concatenate([[frontend.bos_token_id], tokens])


def collate(rows: Sequence[np.ndarray], frontend: FrontendConfig, length: int = 0) -> View:
    """Rows padded on the right to the longest or to `length`."""
    length = max([length, *map(len, rows)])
    ids = np.full((len(rows), length), frontend.pad_token_id, dtype=np.int64)
    real = np.zeros((len(rows), length), dtype=bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)], real[number, : len(row)] = row, True
    inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(real.astype(np.int64))}
    return View(NAME, inputs, None if real.all() else torch.from_numpy(~real), None)


def hide(view: View, generators: list[np.random.Generator], data: DataConfig, samples: Samples) -> View:
    """Spans over every token, <s> and </s> too; in BERT's variant some of them are kept or replaced at random, and not predicted then."""
    ids = view.inputs["input_ids"].numpy()  # (B, T)
    hidden = np.zeros(ids.shape, dtype=bool)
    corrupted = ids.copy()
    lengths = view.inputs["attention_mask"].sum(dim=1).tolist()
    for number, (generator, length) in enumerate(zip(generators, lengths, strict=True)):
        chosen = masking.span(generator, length, data.mask_prob, data.mask_length, last_frame=True)
        keep, replace = corrupt(generator, chosen, data)
        hidden[number, :length] = chosen & ~keep & ~replace
        corrupted[number, :length][replace] = generator.choice(samples.ordinary, int(replace.sum()))
    inputs = dict(view.inputs)
    if data.random_token_prob + data.keep_token_prob > 0:
        corrupted[hidden] = samples.frontend.mask_token_id
        inputs["corrupted_ids"] = torch.from_numpy(corrupted)
    return view._replace(inputs=inputs, mask=Mask(torch.from_numpy(hidden)))


def leave_out(view: View, generators: list[np.random.Generator], data: DataConfig) -> View:
    """M random masks of each row over every token, <s> and </s> too, and what they leave; K as for a row as long as the batch is wide."""
    lengths = view.inputs["attention_mask"].sum(dim=1).tolist()
    rows = [
        masking.scattered(g, length, data.mask_prob)
        for g, length in zip(generators, lengths, strict=True)
        for _ in range(data.masks)
    ]
    tokens = view.inputs["input_ids"].shape[1]
    hidden = masking.stacked(rows, tokens)  # (N, T)
    keep = masking.visible(hidden, masking.num_visible(tokens, data.mask_prob))  # (N, K)
    return view._replace(mask=Mask(torch.from_numpy(hidden), torch.from_numpy(keep)))


def hidden_only(view: View, frontend: FrontendConfig) -> View:
    """What the reference's teacher was given: the hidden tokens where they are, and padding everywhere else."""
    assert view.mask is not None
    hidden = view.mask.hidden
    inputs = {
        "input_ids": view.inputs["input_ids"].masked_fill(~hidden, frontend.pad_token_id),
        "attention_mask": hidden.long(),
    }
    return View(NAME, inputs, ~hidden, None)


def corrupt(generator: np.random.Generator, chosen: np.ndarray, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    """Which of the chosen tokens are kept and which are replaced instead of hidden, two of (T,) bool."""
    either = data.random_token_prob + data.keep_token_prob
    if either == 0:
        return np.zeros_like(chosen), np.zeros_like(chosen)
    special = chosen & (generator.random(len(chosen)) < either)
    keep = special & (generator.random(len(chosen)) < data.keep_token_prob / either)
    return keep, special & ~keep


def _say_nothing(sample: str, reason: str) -> None:
    """For callers that keep no log."""


def batches(
    samples: Samples,
    data: DataConfig,
    frontend: FrontendConfig,
    batch_size: int,
    seed: int,
    bad_log: Callable[[str, str], None] = _say_nothing,
) -> Batches | ViewBatches:
    """Masked blocks of the samples, or views of them; nothing can turn out unreadable here, so `bad_log` is never called."""
    make = ViewBatches if data.views else Batches
    return make(samples, data, batch_size, seed)


def prepare(data: DataConfig, frontend: FrontendConfig, folder: Path, seed: int) -> None:
    """As prepare_tokenizer. ValueError: also settings of masks that contradict one another."""
    check(data)
    prepare_tokenizer(data, frontend, folder)


def prepare_tokenizer(data: ReadConfig, frontend: FrontendConfig, folder: Path) -> None:
    """Trains or adapts the tokenizer into folder/tokenizer unless `folder` has one, and fills the frontend's fields from it.

    ValueError: no data, blocks longer than the model reads, or no such tokenizer.
    """
    if not data.path:
        raise ValueError(
            'data.path is required: text files, a table (parquet, csv, jsonl), a Hub data set, a list of these, or "demo"'
        )
    if not 4 <= data.block_size <= frontend.max_positions:
        raise ValueError(
            f"data.block_size {data.block_size} must lie in 4 ... frontend.max_positions, which is {frontend.max_positions}"
        )
    if tokenizers.find(folder) is None:
        if not data.tokenizer:
            tokenizer = tokenizers.train(
                corpora.lines(*corpora.open_rows(data.path, data.split, data.text)), data.vocab_size
            )
        else:
            tokenizer = tokenizers.load(data.tokenizer)
        tokenizer.model_max_length = frontend.max_positions
        tokenizers.save(tokenizer, folder)
    tokenizer = tokenizers.read(folder)
    if 0 < frontend.vocab_size < len(tokenizer):
        raise ValueError(
            f"frontend.vocab_size is {frontend.vocab_size}, the tokenizer of {folder} has {len(tokenizer)} tokens"
        )
    frontend.vocab_size = frontend.vocab_size or len(tokenizer)  # a larger one stays: tables may be rounded up
    for name in ("bos_token_id", "pad_token_id", "eos_token_id", "mask_token_id"):
        setattr(frontend, name, getattr(tokenizer, name))


def check(data: DataConfig) -> None:
    """ValueError: a setting of blocks, masks or views out of range, or two that contradict each other."""
    check_augment(data.views, data.augment)
    if data.views:
        others = ("break_mode", "mask_kind", "masks", "random_token_prob", "keep_token_prob", "reference_teacher_input")
        check_unread(data, others, "data.views makes views of single rows")
    check_masked_views(data, ("mask_prob", "mask_length"))
    if data.break_mode not in BREAK_MODES:
        raise ValueError(f"data.break_mode {data.break_mode!r} is none of {', '.join(BREAK_MODES)}")
    if data.mask_kind not in MASK_KINDS:
        raise ValueError(f"data.mask_kind {data.mask_kind!r} is none of {', '.join(MASK_KINDS)}")
    if data.masks < 1 or (data.masks > 1 and data.mask_kind == "span"):
        raise ValueError(f"data.masks {data.masks} must be 1, or more with data.mask_kind=random")
    if data.mask_kind == "random" and (
        data.reference_teacher_input or data.random_token_prob or data.keep_token_prob or data.mask_prob == 1
    ):
        raise ValueError(
            "data.mask_kind random leaves tokens out: reference_teacher_input, *_token_prob and data.mask_prob 1 have no place in it"
        )
    if not 0 < data.mask_prob <= 1:
        raise ValueError(f"data.mask_prob {data.mask_prob} must lie in (0, 1]")
    if data.mask_length < 1:
        raise ValueError(f"data.mask_length {data.mask_length} must be at least 1")
    random, keep = data.random_token_prob, data.keep_token_prob
    if random < 0 or keep < 0 or random + keep >= 1:
        raise ValueError(
            f"data.random_token_prob {random} and data.keep_token_prob {keep} must be 0 or more and sum to less than 1"
        )


def save_preprocessor(folder: Path, samples_folder: Path, data: ReadConfig, frontend: FrontendConfig) -> None:
    """The tokenizer's files, so that AutoTokenizer.from_pretrained(folder) works."""
    tokenizers.copy(samples_folder, folder)
