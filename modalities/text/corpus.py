"""Rows of text: what the user has or Python's documentation (the demo), tokenized once, and cut into blocks.

R usable rows, S tokens in all of them with one </s> after each row.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerFast

from d2v.modalities.common import sources, tables
from d2v.modalities.common.data_report import Report
from d2v.modalities.common.documents import AUTO, are_documents
from d2v.modalities.text import tokenizer as tokenizers
from d2v.modalities.text import topics
from d2v.protocols import NoSplitError

DEMO = "demo"
DEMO_TOPICS, DEMO_LENGTH, DEMO_SPLITS = 10, 200, ("train", "test")
CHUNK = 10_000  # rows that are in memory as strings at a time


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


def open_rows(path: Any, split: str, text: str, sample_by: str) -> tuple[datasets.Dataset, str]:
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
    return dataset, text_column(dataset, path, text)


def text_column(dataset: datasets.Dataset, path: Any, text: str) -> str:
    """The name of the text column: `text`, or for the default whatever holds text. ValueError: no such column."""
    if text in dataset.column_names:
        return text
    if text != "text":
        raise ValueError(
            f"data.text is {text!r}; the columns of data.path {path} are {', '.join(dataset.column_names)}"
        )
    return tables.media_column(dataset, "text")


def demo(split: str) -> datasets.Dataset:
    """Paragraphs of the largest topics of Python's documentation, which every Python brings; "label" is the topic.

    Every fourth paragraph of a topic is of split "test". ValueError: neither "train" nor "test".
    """
    from pydoc_data.topics import topics

    if split not in DEMO_SPLITS:
        raise NoSplitError(f"data.split {split!r}: the demo has the splits {', '.join(DEMO_SPLITS)}")
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


def tokenize(dataset: datasets.Dataset, column: str, tokenizer: PreTrainedTokenizerFast, shortest: int) -> Corpus:
    """All rows of at least `shortest` tokens as ids.

    An empty line is the border of a document, or, in a table, a bad sample. Rows that are files are documents.
    """
    has_borders, are_whole = len(dataset.column_names) == 1, are_documents(dataset)  # lines of text files; the files
    pieces, lengths, documents, rows = [], [], [], []
    corpus = Corpus(*(np.zeros(0),) * 4, num_rows=0, unreadable=[], too_short=[])
    document, eos = 0, tokenizer.eos_token_id
    for start in range(0, len(dataset), CHUNK):
        texts = dataset.select_columns([column])[start : start + CHUNK][column]
        encoded = tokenizers.encode(tokenizer, ["" if _fault(text) else text for text in texts])
        for row, (text, ids) in enumerate(zip(texts, encoded, strict=True), start):
            reason = _fault(text)
            if has_borders and not reason and not text.strip():
                document += 1
                continue
            corpus.num_rows += 1
            if reason:
                corpus.unreadable.append((row, reason))
            elif len(ids) < shortest:
                corpus.too_short.append((row, f"{len(ids)} tokens, at least {shortest} are needed"))
            else:
                pieces.append(np.array([*ids, eos], dtype=np.int32))
                lengths.append(len(ids) + 1)
                documents.append(row if are_whole else document)
                rows.append(row)
    corpus.tokens = np.concatenate([np.zeros(0, np.int32), *pieces])
    corpus.offsets = np.cumsum([0, *lengths])
    corpus.documents = np.array(documents, dtype=np.int64)
    corpus.rows = np.array(rows, dtype=np.int64)
    return corpus


def _fault(text: Any) -> str | None:
    """Why a row cannot be read, if so."""
    if text is None:
        return "empty cell"
    if not isinstance(text, str):
        return f"{type(text).__name__} instead of text"
    if "\0" in text:
        return "no text: it holds zero bytes; save it as UTF-8"
    return "not UTF-8" if "\ufffd" in text else None  # what a reader puts in place of bytes that are none


def classes(dataset: datasets.Dataset, label: str) -> list[str] | None:
    """Names of the classes in the column `label`; None: the data has no such column, or knows no names."""
    return tables.classes(dataset, label) if label in dataset.column_names else None


def report(corpus: Corpus, dataset: datasets.Dataset, ids: list[str], label: str) -> Report:
    """How many rows are usable, which are not and why, and the classes where the data has `label`."""
    found = Report(
        "text",
        corpus.num_rows,
        len(corpus.rows),
        unreadable=[(ids[row], reason) for row, reason in corpus.unreadable],
        too_short=[(ids[row], reason) for row, reason in corpus.too_short],
        amount=f"{_short(len(corpus.tokens))} tokens",
        notes=sources.notes(dataset),
        splits=sources.splits(dataset),
    )
    if label in dataset.column_names:
        found.count_classes(tables.cells(dataset, label, corpus.rows), classes(dataset, label), label)
    return found


def _short(number: int) -> str:
    """1234567 as 1.2M."""
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.1f}{unit}"
    return str(number)


def shuffled(corpus: Corpus, seed: int) -> Corpus:
    """The rows in a random order, as one document."""
    order = np.random.default_rng(seed).permutation(len(corpus.rows))
    rows = [corpus.tokens[corpus.offsets[row] : corpus.offsets[row + 1]] for row in order]
    offsets = np.cumsum([0, *map(len, rows)])
    return replace(
        corpus,
        tokens=np.concatenate([corpus.tokens[:0], *rows]),
        offsets=offsets,
        documents=np.zeros_like(corpus.documents),
        rows=corpus.rows[order],
    )


def blocks(corpus: Corpus, capacity: int, break_mode: str) -> np.ndarray:
    """Where blocks of at most `capacity` tokens begin and end in `corpus.tokens`, (num_blocks, 2).

    "complete_doc", and "shuffled" for a corpus in that order: whole rows of one document; a row longer than a block is
    cut, and its last piece may share a block with the next row. "none": the stream is cut every `capacity` tokens.
    Blocks of a single token are left out: nothing could be predicted in them.
    """
    end = int(corpus.offsets[-1])
    if break_mode == "none":
        pairs = [(start, min(start + capacity, end)) for start in range(0, end, capacity)]
    else:
        pairs, start, last = [], 0, -1
        for row, document in enumerate(corpus.documents):
            begin, stop = int(corpus.offsets[row]), int(corpus.offsets[row + 1])
            if document != last or stop - start > capacity:
                pairs.append((start, begin))
                start, last = begin, document
            while stop - start > capacity:
                pairs.append((start, start + capacity))
                start += capacity
        pairs.append((start, end))
    return np.array([pair for pair in pairs if pair[1] - pair[0] > 1], dtype=np.int64).reshape(-1, 2)
