"""Text that was tokenized once, in mapped files: later starts and other processes read no line of it.

R usable rows, S tokens in all of them.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerFast

from d2v import cache
from d2v.modalities.common.known import state_of
from d2v.modalities.common.mapped import Growing, kept, mapped
from d2v.modalities.common.sources import TEXTS
from d2v.modalities.text import corpus as corpora
from d2v.modalities.text import tokenizer as tokenizers
from d2v.modalities.text.config import ReadConfig
from d2v.modalities.text.corpus import ROWS, Corpus

ARRAYS = {"tokens": np.int32, "offsets": np.int64, "documents": np.int64, "rows": np.int64}
SAID = "said.json"


def corpus_of(
    dataset: datasets.Dataset,
    column: str,
    tokenizer: PreTrainedTokenizerFast,
    data: ReadConfig,
    split: str,
    shortest: int,
) -> Corpus:
    """What `corpora.tokenize` gives, from its files where the text, the settings and the tokenizer are as they were."""
    state = _state(dataset, data.path)
    if state is None:
        return corpora.tokenize(dataset, column, tokenizer, shortest)
    how = [_where(data, split), column, shortest, digest_of(tokenizer)]
    entry = cache.Entry("tokens", cache.digest_of(how), state)
    with cache.sought(entry) as folder:
        folder = folder or cache.keep(
            entry, lambda draft: _write(draft, corpora.pieces_of(dataset, column, tokenizer, shortest))
        )
    if folder is None:  # there is no room for it
        return corpora.tokenize(dataset, column, tokenizer, shortest)
    said = json.loads((folder / SAID).read_text())
    unreadable = [(row, why) for row, why in said["unreadable"]]  # JSON has no tuples
    too_short = [(row, why) for row, why in said["too_short"]]
    arrays = {name: mapped(folder / f"{name}.npy") for name in ARRAYS}
    return Corpus(
        **arrays,
        num_rows=said["num_rows"],
        unreadable=unreadable,
        too_short=too_short,
        digest=cache.digest_of(state, how),
    )


def _state(dataset: datasets.Dataset, path: Any) -> str | None:
    """What changes if the text does; None: it is little, or nobody knows."""
    return state_of(path, TEXTS) if len(dataset) >= cache.LEAST or dataset.cache_files else None


def _where(data: ReadConfig, split: str) -> list[Any]:
    """Which rows are read."""
    return [str(data.path), split, data.text, data.sample_by]


def digest_of(tokenizer: PreTrainedTokenizerFast) -> str:
    """Another one for tokenizers that may give other ids."""
    return cache.digest_of(tokenizer.backend_tokenizer.to_str(), sorted(tokenizer.all_special_ids))


def _write(folder: Path, pieces: Any) -> None:
    files = {name: Growing(folder / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
    unreadable, too_short, num_rows, end = [], [], 0, 0
    files["offsets"].append(np.zeros(1, np.int64))
    for piece in pieces:
        files["tokens"].append(piece.tokens)
        files["offsets"].append(end + np.cumsum(piece.lengths))
        files["documents"].append(piece.documents)
        files["rows"].append(piece.rows)
        end += len(piece.tokens)
        num_rows += piece.num_rows
        unreadable += piece.unreadable
        too_short += piece.too_short
    for file in files.values():
        file.close()
    said = {"num_rows": num_rows, "unreadable": unreadable, "too_short": too_short}
    (folder / SAID).write_text(json.dumps(said))


def lengths_of(corpus: Corpus, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens of each row with <s> and </s>, as many as are read at once, (R,); all sizes that there are, and how often.

    The sizes, (Z,) and sorted, are those of whole rows.
    """

    def pieces() -> Iterator[np.ndarray]:
        for start in range(0, max(1, len(corpus.rows)), ROWS):
            yield np.diff(corpus.offsets[start : start + ROWS + 1]) + 1  # with <s>

    def make() -> dict[str, Any]:
        found: Counter[int] = Counter()
        for sizes in pieces():
            for size, count in zip(*np.unique(sizes, return_counts=True), strict=True):
                found[int(size)] += int(count)
        numbers = np.array(sorted(found), dtype=np.int64)
        return {
            "lengths": (np.minimum(sizes, longest).astype(np.int32) for sizes in pieces()),
            "numbers": numbers,
            "counts": np.array([found[size] for size in numbers.tolist()], dtype=np.int64),
        }

    found = kept("lengths", cache.digest_of(longest, corpus.digest, "counted"), corpus.digest, make)
    return found["lengths"], found["numbers"], found["counts"]


def blocks_of(corpus: Corpus, capacity: int, break_mode: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens in the order that blocks are cut from, (S,), and where each begins and ends there, (num_blocks, 2)."""

    def make() -> dict[str, Any]:
        if break_mode != "shuffled":
            return {"blocks": corpora.blocks(corpus, capacity, break_mode)}
        mixed = corpora.shuffled(corpus, seed)
        return {"tokens": mixed.tokens, "blocks": corpora.blocks(mixed, capacity, break_mode)}

    order = [capacity, break_mode, *([seed] if break_mode == "shuffled" else [])]
    found = kept("blocks", cache.digest_of(order, corpus.digest), corpus.digest, make)
    return found.get("tokens", corpus.tokens), found["blocks"]


def trained(dataset: datasets.Dataset, column: str, data: ReadConfig, whole: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of these rows, which are all that data.path has if `whole`; one that was trained on them before."""
    state = _state(dataset, data.path) if whole else None
    if state is None:
        return tokenizers.train(corpora.lines(dataset, column), data.vocab_size)
    how = cache.digest_of(_where(data, data.split), column, data.vocab_size)
    entry = cache.Entry("tokenizers", how, state)
    with cache.sought(entry) as folder:
        if folder is None:
            made = tokenizers.train(corpora.lines(dataset, column), data.vocab_size)
            cache.keep(entry, lambda draft: made.save_pretrained(draft) and None)
            return made
    return tokenizers.load(str(folder))
