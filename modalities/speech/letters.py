"""Letters: the vocabulary of transcripts, as transformers' Wav2Vec2CTCTokenizer takes it, and CTC's greedy reading.

T tokens, V letters.
"""

import json
import tempfile
import unicodedata
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
from transformers import Wav2Vec2CTCTokenizer

BLANK, UNKNOWN, SPACE = "<pad>", "<unk>", "|"  # the tokenizer's names; the blank is letter 0
CASES = {"keep": str, "lower": str.lower, "upper": str.upper}


def normalise(text: str, case: str) -> str:
    """One space between words, characters composed (Unicode NFC), and the case that is asked for, a key of CASES."""
    return CASES[case](unicodedata.normalize("NFC", " ".join(text.split())))


def tokens_needed(text: str) -> int:
    """The fewest tokens in which CTC can spell a text: one a letter, and a blank between two that are alike."""
    return len(text) + sum(first == second for first, second in pairwise(text))


class Vocabulary:
    """The letters of a training split in sorted order, behind blank, unknown and the sign between words."""

    def __init__(self, letters: list[str]):
        self.letters = letters
        self._codes = {" " if letter == SPACE else letter: code for code, letter in enumerate(letters)}

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> "Vocabulary":
        """That of the texts that are trained on."""
        return cls([BLANK, UNKNOWN, SPACE, *sorted(set().union(*texts) - {" "})])

    def __len__(self) -> int:
        return len(self.letters)

    def unknown(self, text: str) -> set[str]:
        """Characters of a text that are no letters."""
        return set(text) - self._codes.keys()

    def encode(self, text: str) -> np.ndarray:
        """(L,) codes."""
        return np.array([self._codes.get(character, self._codes[UNKNOWN]) for character in text], dtype=np.int64)

    def decode(self, codes: Iterable[int]) -> str:
        """The text of codes without repeats and blanks."""
        return "".join(self.letters[code] for code in codes).replace(SPACE, " ").strip()

    def greedy(self, logits: np.ndarray) -> str:
        """The text of the likeliest letter of each token (T, V): repeats count once, then blanks are left out."""
        path = logits.argmax(axis=1)  # (T,)
        new = np.diff(path, prepend=-1) != 0
        return self.decode(path[new & (path != 0)])

    def tokenizer(self) -> Wav2Vec2CTCTokenizer:
        """This vocabulary as transformers' tokenizer."""
        codes = {letter: code for code, letter in enumerate(self.letters)}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "vocab.json"
            file.write_text(json.dumps(codes, ensure_ascii=False), encoding="utf-8")
            return Wav2Vec2CTCTokenizer(
                str(file),
                bos_token=None,
                eos_token=None,
                unk_token=UNKNOWN,
                pad_token=BLANK,
                word_delimiter_token=SPACE,
            )
