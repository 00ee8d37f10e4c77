"""Rows of text: what the user has or Python's documentation (the demo), tokenized once, and cut into blocks.

R usable rows, S tokens in all of them with one </s> after each row.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from d2v import cache
from d2v.modalities.common import sources, tables
from d2v.modalities.common.data_report import Report
from d2v.modalities.common.documents import AUTO, are_documents
from d2v.modalities.common.encodings import not_text
from d2v.modalities.common.folders import walk
from d2v.modalities.text import tokenizer as tokenizers
from d2v.modalities.text import topics
from d2v.protocols import NoSplitError

DEMO = "demo"
DEMO_TOPICS, DEMO_LENGTH, DEMO_SPLITS = 10, 200, ("train", "test")
NOT_TEXT = "not UTF-8, or U+FFFD in it, which stands for what is not"
TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
CHUNK, MOST = 10_000, 1 << 18  # rows, and bytes of them, that are in memory as strings at a time
ROWS = 1 << 17  # rows whose blocks are found at once


@dataclass
class Corpus:
    """Every usable row of a data set as token ids."""

    tokens: np.ndarray  # (S,) int32, </s> included
    offsets: np.ndarray  # (R + 1,) int64: row r is tokens[offsets[r]:offsets[r + 1]]
    documents: np.ndarray  # (R,) int64, the number of the document that a row lies in
    rows: np.ndarray  # (R,) int64, numbers in the data set
    num_rows: int  # usable or not; borders of documents are none
    unreadable: list[tuple[int, str]]
    too_short: list[tuple[int, str]]
    digest: str | None = None  # of the data and the tokenizer; None: nobody knows when they change


def open_rows(path: Any, split: str, text: str, sample_by: str, label: str) -> tuple[datasets.Dataset, str]:
    """The data set and the name of its text column.

    ValueError: nothing there, no such split, no such column, or no text files, of which `sample_by` could be.
    """
    if path in (DEMO, topics.DEMO) and sample_by != AUTO:
        raise ValueError(f"data.sample_by is {sample_by!r}, and nothing reads it: data.path is {path}: leave it out")
    if path == DEMO:
        dataset = sources.with_splits(demo(split), DEMO_SPLITS)
    elif path == topics.DEMO:
        dataset = sources.with_splits(topics.dataset(split), topics.STORIES)
    else:
        dataset = sources.open_source(path, split, sources.TEXTS, "text", [text], sample_by)
    return dataset, text_column(dataset, path, text, label)


def text_column(dataset: datasets.Dataset, path: Any, text: str, label: str) -> str:
    """The name of the text column: `text`, or for the default whatever holds text and is not the `label`.

    ValueError: no such column.
    """
    if text in dataset.column_names:
        return text
    if text != "text":
        raise ValueError(
            f"data.text is {text!r}; the columns of data.path {path} are {', '.join(dataset.column_names)}"
            + _tables_beside(path)
        )
    return tables.media_column(dataset, "text", label)


def _tables_beside(path: Any) -> str:
    """What is said of tables in a folder whose text files were read."""
    folder = Path(path).expanduser() if isinstance(path, str | Path) else Path()
    files = sorted(folder.iterdir()) if path and folder.is_dir() else []
    has_text = any(file.suffix in sources.TEXTS for file in files)
    there = [file.name for file in files if file.suffix in TABLES] if has_text else []
    return f"; {there[0]} beside them is not read: data.path may name it" if there else ""


@functools.cache  # a run, its health checks and what scores it open it each
def demo(split: str) -> datasets.Dataset:
    """Paragraphs of the largest topics of Python's documentation, which every Python brings; "label" is the topic.

    Every fourth paragraph of a topic is of split "test". ValueError: neither "train" nor "test".
    """
    from pydoc_data.topics import topics

    if split not in DEMO_SPLITS:
        raise NoSplitError(f"data.split {split!r}: the demo has the splits {', '.join(DEMO_SPLITS)}", list(DEMO_SPLITS))
    # some topics contain others: a paragraph belongs to the smallest, so that no two splits share one
    owner: dict[str, str] = {}
    for topic in sorted(topics, key=lambda name: (len(topics[name]), name)):
        for paragraph in re.split(r"\n\s*\n", topics[topic]):
            owner.setdefault(" ".join(paragraph.split()), topic)
    paragraphs: dict[str, list[str]] = {}
    for paragraph, topic in owner.items():
        mine = paragraphs.setdefault(topic, [""])
        if len(mine[-1]) >= DEMO_LENGTH:
            mine.append("")
        mine[-1] = f"{mine[-1]} {paragraph}".strip()
    largest = sorted(paragraphs, key=lambda name: (-sum(map(len, paragraphs[name])), name))[:DEMO_TOPICS]
    labels = datasets.ClassLabel(names=sorted(largest))
    rows = {"text": [], "label": []}
    for name in labels.names:
        for number, paragraph in enumerate(paragraphs[name]):
            if (number % 4 == 3) == (split == "test"):
                rows["text"].append(paragraph)
                rows["label"].append(labels.str2int(name))
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    return datasets.Dataset.from_dict(rows, features=features)


def lines(dataset: datasets.Dataset, column: str) -> Iterator[str]:
    """The readable texts, a chunk in memory at a time."""
    texts = dataset.select_columns([column])
    for start in range(0, len(texts), CHUNK):
        yield from (text for text in texts[start : start + CHUNK][column] if not _fault(text))


class Piece(NamedTuple):
    """Some rows as token ids: as in Corpus, with a length for each of the usable ones."""

    tokens: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray
    rows: np.ndarray
    num_rows: int
    unreadable: list[tuple[int, str]]
    too_short: list[tuple[int, str]]


def tokenize(dataset: datasets.Dataset, column: str, tokenizer: PreTrainedTokenizerFast, shortest: int) -> Corpus:
    """All rows of at least `shortest` tokens as ids.

    An empty line is the border of a document, or, in a table, a bad sample. Rows that are files are documents.
    """
    corpus = Corpus(*(np.zeros(0),) * 4, num_rows=0, unreadable=[], too_short=[])
    pieces = []
    for piece in pieces_of(dataset, column, tokenizer, shortest):
        pieces.append(piece)
        corpus.num_rows += piece.num_rows
        corpus.unreadable += piece.unreadable
        corpus.too_short += piece.too_short
    corpus.tokens = np.concatenate([np.zeros(0, np.int32), *(piece.tokens for piece in pieces)])
    corpus.offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), *(piece.lengths for piece in pieces)]))
    corpus.documents = np.concatenate([np.zeros(0, np.int64), *(piece.documents for piece in pieces)])
    corpus.rows = np.concatenate([np.zeros(0, np.int64), *(piece.rows for piece in pieces)])
    return corpus


def pieces_of(
    dataset: datasets.Dataset, column: str, tokenizer: PreTrainedTokenizerFast, shortest: int
) -> Iterator[Piece]:
    """What `tokenize` joins, a part of the rows in memory at a time."""
    has_borders, are_whole = len(dataset.column_names) == 1, are_documents(dataset)  # lines of text files; the files
    document, eos = 0, tokenizer.eos_token_id
    with cache.progress(len(dataset), "tokenizing", "rows") as bar:
        for first, texts in _strings(dataset, column):
            encoded = tokenizers.encode(tokenizer, ["" if _fault(text) else text for text in texts])
            ids, lengths, documents, rows = [], [], [], []
            piece = Piece(*(np.zeros(0),) * 4, num_rows=0, unreadable=[], too_short=[])
            count = 0
            for row, (text, of_row) in enumerate(zip(texts, encoded, strict=True), first):
                reason = _fault(text)
                if has_borders and not reason and not text.strip():
                    document += 1
                    continue
                count += 1
                if reason:
                    piece.unreadable.append((row, reason))
                elif len(of_row) < shortest:
                    piece.too_short.append((row, f"{len(of_row)} tokens, at least {shortest} are needed"))
                else:
                    of_row.append(eos)
                    ids.append(of_row)
                    lengths.append(len(of_row))
                    documents.append(row if are_whole else document)
                    rows.append(row)
            yield piece._replace(
                tokens=np.fromiter(itertools.chain.from_iterable(ids), np.int32, sum(lengths)),
                lengths=np.array(lengths, dtype=np.int64),
                documents=np.array(documents, dtype=np.int64),
                rows=np.array(rows, dtype=np.int64),
                num_rows=count,
            )
            bar.update(len(texts))


def _strings(dataset: datasets.Dataset, column: str) -> Iterator[tuple[int, list[Any]]]:
    """The number of a row, and the cells from there on, as many as may be in memory."""
    row = 0
    for chunk in tables.column_of(dataset, column).chunks:
        sizes = np.zeros(len(chunk), dtype=np.int64)
        if pa.types.is_string(chunk.type) or pa.types.is_large_string(chunk.type):
            sizes = np.asarray(pc.binary_length(chunk).fill_null(0)).astype(np.int64)
        ends = np.cumsum(sizes)
        start = 0
        while start < len(chunk):
            fit = int(np.searchsorted(ends, ends[start] - sizes[start] + MOST, "right"))
            stop = min(max(start + 1, fit), start + CHUNK)
            yield row + start, chunk.slice(start, stop - start).to_pylist()
            start = min(stop, len(chunk))
        row += len(chunk)


def _fault(text: Any) -> str | None:
    """Why a row cannot be read, if so."""
    if text is None:
        return "empty cell"
    if not isinstance(text, str):
        return f"{type(text).__name__} instead of text"
    if "\0" in text:
        return "no text: it holds zero bytes; save it as UTF-8"
    if "\ufffd" in text:
        return NOT_TEXT
    return None


def classes(dataset: datasets.Dataset, label: str) -> list[str] | None:
    """Names of the classes in the column `label`; None: the data has no such column, or knows no names."""
    return tables.classes(dataset, label) if label in dataset.column_names else None


def report(
    texts: Mapping[str, Corpus], usable: np.ndarray, dataset: datasets.Dataset, ids: Sequence[str], label: str
) -> Report:
    """How many rows are `usable`, which are not and why, and the classes where the data has `label`.

    `texts`: by their column, the second of pairs after the first.
    """
    first, *others = texts.values()
    found = Report(
        "text",
        first.num_rows,
        len(usable),
        unreadable=[(ids[row], reason) for row, reason in first.unreadable],
        too_short=[(ids[row], reason) for row, reason in first.too_short],
        amount=f"{_short(sum(len(corpus.tokens) for corpus in texts.values()))} tokens",
        notes=sources.notes(dataset),
        splits=sources.splits(dataset),
    )
    for name, corpus in zip([*texts][1:], others, strict=True):
        found.unreadable += [(ids[row], f"{name}: {reason}") for row, reason in corpus.unreadable]
        found.too_short += [(ids[row], f"{name}: {reason}") for row, reason in corpus.too_short]
    if label in dataset.column_names:
        found.count_classes(tables.cells(dataset, label, usable), classes(dataset, label), label)
    return found


def further_notes(found: Report, corpus: Corpus, dataset: datasets.Dataset, path: Any) -> list[str]:
    """What else is said of all rows: empty ones, and which files of a folder are of another encoding, as lines are
    named by their numbers."""
    said = []
    borders = len(dataset) - corpus.num_rows
    if borders and dataset.info.builder_name != "text":  # in files of text nobody wonders at empty lines
        said.append(f"{borders} empty rows are taken for borders of documents")
    folder = Path(path).expanduser() if path and isinstance(path, str | Path) else None
    if folder is not None and folder.is_dir() and any(reason == NOT_TEXT for _, reason in found.unreadable):
        files = [file for file in walk(folder).files if file.suffix.lower() in sources.TEXTS]
        wrong = [file.relative_to(folder).as_posix() for file in not_text(files)]
        said += [f"text files of data.path that are not UTF-8: {', '.join(wrong)}"] if wrong else []
    return said


def _short(number: int) -> str:
    """1234567 as 1.2M."""
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.1f}{unit}"
    return str(number)


def shuffled(corpus: Corpus, seed: int) -> Corpus:
    """The rows in a random order, as one document."""
    order = np.random.default_rng(seed).permutation(len(corpus.rows))
    starts, lengths = corpus.offsets[:-1][order], np.diff(corpus.offsets)[order]
    offsets = np.cumsum(np.concatenate([np.zeros(1, np.int64), lengths]))
    tokens = np.empty(len(corpus.tokens), dtype=corpus.tokens.dtype)
    for first in range(0, len(order), CHUNK):
        stop = min(first + CHUNK, len(order))
        of_rows = _runs(starts[first:stop], lengths[first:stop])
        tokens[offsets[first] : offsets[stop]] = corpus.tokens[of_rows]
    return replace(
        corpus,
        tokens=tokens,
        offsets=offsets,
        documents=np.zeros_like(corpus.documents),
        rows=corpus.rows[order],
    )


def _runs(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers from each start on, as many as its length, joined."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


def blocks(corpus: Corpus, capacity: int, break_mode: str) -> Iterator[np.ndarray]:
    """Where blocks of at most `capacity` tokens begin and end in `corpus.tokens`, in pieces (n, 2), the first empty.

    "complete_doc", and "shuffled" for a corpus in that order: whole rows of one document; a row longer than a block is
    cut, and its last piece may share a block with the next row. "none": the stream is cut every `capacity` tokens.
    Blocks of a single token are left out: nothing could be predicted in them.
    """
    yield np.zeros((0, 2), np.int64)
    end, row = int(corpus.offsets[-1]), 0
    if break_mode == "none":
        for first in range(0, end, capacity * ROWS):
            starts = np.arange(first, min(first + capacity * ROWS, end), capacity)
            yield _of_two(np.stack([starts, np.minimum(starts + capacity, end)], axis=1))
        return
    while row < len(corpus.documents):
        pairs, row = _blocks_from(corpus, capacity, row)
        yield _of_two(pairs)


def _of_two(pairs: np.ndarray) -> np.ndarray:
    """Those blocks (n, 2) that hold more than one token."""
    return pairs[pairs[:, 1] - pairs[:, 0] > 1]


def _blocks_from(corpus: Corpus, capacity: int, first: int) -> tuple[np.ndarray, int]:
    """Blocks of the rows from `first` on, as many as may be in memory, (n, 2), and the row where the next begins.

    Of each row it is found what happens if a block begins with it: whole blocks that it fills, `cuts`, and then one
    that ends where row `follow` begins. A walk from row to `follow` tells which rows these are.
    """
    offsets = corpus.offsets
    stop = min(first + ROWS, len(corpus.documents))
    starts, ends = np.asarray(offsets[first:stop]), np.asarray(offsets[first + 1 : stop + 1])
    cuts = np.maximum(-(-(ends - starts) // capacity) - 1, 0)
    fit = np.searchsorted(offsets, starts + cuts * capacity + capacity, "right") - 1
    document_end = np.searchsorted(corpus.documents, corpus.documents[first:stop], "right")
    follow = np.minimum(fit, document_end)
    begins, row = [], first
    while row < stop:
        begins.append(row - first)
        row = int(follow[row - first])
    begins = np.array(begins)
    counts = cuts[begins] + 1
    of_begin = np.repeat(begins, counts)
    places = _runs(np.zeros(len(counts), np.int64), counts)  # of a block among those of its row
    left = starts[of_begin] + places * capacity
    right = np.where(places == cuts[of_begin], offsets[follow[of_begin]], left + capacity)
    return np.stack([left, right], axis=1), row
