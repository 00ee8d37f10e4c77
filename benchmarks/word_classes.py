"""Noun, verb or adjective, told of words that no probe has seen: what a token's frozen feature knows of its sentence.

    python benchmarks/word_classes.py EXPORT... [text=TEXTS] [seeds=3]

English sentences from a small grammar, one word of each to be classified by a linear probe on the mean feature of its
tokens; all content words of the test sentences are other ones than those that the probe learns from. No corpus and no
annotator is behind it. Two tasks, chance is 33.3:

types    real words (cat, saw, old), which a bag of tokens does not know, and pretraining may have read.
context  made-up words (dax, blicket), each of them in all three classes: the sentence alone tells.

Beside every EXPORT its random init, and the bag of tokens: counts of the word's tokens and of its sentence's; of real
words it knows the pieces that they share. Each seed draws other words, sentences and a random init. TEXTS:
what a table of tokens that begins with co-occurrence (model.frontends.text.init) is begun from.
"""

import random
import statistics
import sys
from types import SimpleNamespace

import numpy as np
import torch
from minimal_pairs import LIVING, PAIRS_OF_WORDS, THINGS, words
from transformers import AutoModel, AutoTokenizer

import d2v  # noqa: F401  (registers our models with transformers)
from d2v.evaluation.classifiers import linear_probe
from d2v.evaluation.config import EvaluateConfig
from d2v.evaluation.features import frozen
from d2v.evaluation.scoring import probe_of
from d2v.modalities.text import corpus as corpora
from d2v.models.encoder import D2vModel

# verbs whose ending does not give them away, and what made-up words are made of
VERBS, STARTS, ENDS = [
    line.split()
    for line in """
saw left took found lost held met hit caught sold felt led told knew heard kept built bought brought fed hid drew chose
b d f g k l m n p r s t v w z bl cr dr fl gr pl sn tr
b ck d ft g l m n p rk sh t x
""".strip().splitlines()
]
CLASSES = {"noun": [*LIVING, *THINGS], "verb": VERBS, "adjective": [word for pair in PAIRS_OF_WORDS for word in pair]}
FRAMES = (  # each has all classes, and a word's is drawn for itself: a sentence's other words do not give it away
    "the adjective noun verb the noun",
    "the noun verb the adjective noun",
    "the noun of the adjective noun verb the noun",
    "the noun verb the noun and the adjective noun verb the noun",
    "the noun and the noun verb the adjective noun",
    "the adjective adjective noun verb the noun",
)
OPENINGS = ("", "then ", "and so ", "one day ", "as they say ")  # so that its number does not tell a place
SIZE = {"train": 900, "test": 450}
BATCH = 150
TASKS = ("types", "context")


def made_up(draw: random.Random) -> str:
    """A word of one or two syllables that means nothing."""
    return "".join(draw.choice(STARTS) + draw.choice("aeiou") + draw.choice(ENDS) for _ in range(draw.choice((1, 2))))


def sentences(task: str, split: str, seed: int) -> list[tuple[str, int, int, int]]:
    """A sentence, where its word begins and ends, and the number of its class."""
    draw = random.Random(f"{task} {split} {seed}")
    pool = random.Random(seed)  # the same for both splits, which share no word
    known = {name: words(pool.sample(of, len(of)), split) for name, of in CLASSES.items()}
    new = words(sorted({made_up(pool) for _ in range(400)} - {word for of in CLASSES.values() for word in of}), split)
    found = []
    for number in range(SIZE[split]):
        wanted, frame = list(CLASSES)[number % len(CLASSES)], draw.choice(FRAMES).split()
        target = draw.choice([place for place, slot in enumerate(frame) if slot == wanted])
        parts = [draw.choice(known[slot]) if slot in known else slot for slot in frame]
        if task == "context":
            parts[target] = draw.choice(new)
        before = draw.choice(OPENINGS) + "".join(f"{part} " for part in parts[:target])
        text = before + " ".join(parts[target:])
        found.append((text, len(before), len(before) + len(parts[target]), list(CLASSES).index(wanted)))
    return found


class Read:
    """Sentences as tokens: ids, and of which tokens the word of each consists."""

    def __init__(self, tokenizer, found: list[tuple[str, int, int, int]]):
        self.labels = np.array([label for *_, label in found])
        self.rows, self.words, self.padding = [], [], tokenizer.pad_token_id
        for text, start, stop, _ in found:
            encoded = tokenizer(text, return_offsets_mapping=True)
            self.rows.append(encoded["input_ids"])
            inside = [min(end, stop) > max(begin, start) for begin, end in encoded["offset_mapping"]]
            self.words.append(np.flatnonzero(inside))

    def bag(self, size: int) -> np.ndarray:
        """(n, 2 V): counts of the word's tokens, and of the sentence's."""
        counts = np.zeros((len(self.rows), 2, size), dtype=np.float32)
        for count, row, places in zip(counts, self.rows, self.words, strict=True):
            np.add.at(count[0], np.array(row)[places], 1)
            np.add.at(count[1], row, 1)
        return counts.reshape(len(counts), -1)

    def features(self, encoder: D2vModel) -> np.ndarray:
        """(n, D): the mean of the last layer over the word's tokens."""
        found = []
        with frozen(encoder):
            for start in range(0, len(self.rows), BATCH):
                some = [torch.tensor(row) for row in self.rows[start : start + BATCH]]
                ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=self.padding)
                x = encoder(input_ids=ids).last_hidden_state  # (B, T, D)
                found += [x[row, places].mean(dim=0).numpy() for row, places in enumerate(self.words[start:][:BATCH])]
        return np.stack(found)


def score(train: np.ndarray, test: np.ndarray, read: dict[str, Read]) -> float:
    """Percent of the test sentences' words."""
    probe = probe_of(EvaluateConfig())
    return 100 * linear_probe(train, read["train"].labels, test, read["test"].labels, probe)[0]


def random_init(model: D2vModel, seed: int, texts: SimpleNamespace | None) -> D2vModel:
    """The same architecture untrained."""
    torch.manual_seed(seed)
    encoder = D2vModel(model.config)
    if texts is not None:
        encoder.begin_with("text", texts)
    return encoder


def main(argv: list[str]) -> None:
    """Prints a line for each export and its controls. SystemExit: none is named."""
    exports = [argument for argument in argv if "=" not in argument]
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if not exports or set(given) - {"text", "seeds"}:
        raise SystemExit(__doc__)
    for export in exports:
        model, tokenizer = AutoModel.from_pretrained(export), AutoTokenizer.from_pretrained(export)
        texts = None
        if "text" in given:
            dataset, column = corpora.open_rows(given["text"], "train", "text")
            texts = SimpleNamespace(corpus=corpora.tokenize(dataset, column, tokenizer))
        for task in TASKS:
            scores: dict[str, list[float]] = {name: [] for name in ("bag of tokens", "random init", export)}
            for seed in range(int(given.get("seeds", 3))):
                encoders = {"random init": random_init(model, seed, texts), export: model}
                read = {split: Read(tokenizer, sentences(task, split, seed)) for split in SIZE}
                both = [read[split].bag(len(tokenizer)) for split in SIZE]
                scores["bag of tokens"].append(score(*both, read))
                for name, encoder in encoders.items():
                    scores[name].append(score(*(read[split].features(encoder) for split in SIZE), read))
            for name, found in scores.items():
                print(f"{task:8} {name}: {statistics.mean(found):.1f} ({', '.join(f'{one:.1f}' for one in found)})")


if __name__ == "__main__":
    main(sys.argv[1:])
