"""Sentences in pairs of the same words in another order, of which one is right: no bag of words can tell which.

    python benchmarks/minimal_pairs.py OUT [text=BOOK.txt or TABLE.csv] [seed=0]

Writes tables with the columns text and label, OUT/<task>/train.csv and test.csv, whose content words are different
ones. For d2v evaluate: evaluate.path=OUT/agreement; a bag of tokens scores 50.
Tasks: agreement ("the key near the doors is old"), arguments (what lives is what acts), negation ("it was warm, not
cold" is warm), and with text=, natural sentences of a book or of a table's column text, order (as it was, or its twin
of the same words shuffled). What single words mean in a sentence is asked by word_classes.py beside this file.
"""

import csv
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

# what lives, what does not, what was done, and what things are; a line each
LIVING, THINGS, SAW, WAS = [
    line.split()
    for line in """
dog cat man woman boy girl king queen child doctor horse bird soldier teacher farmer sister brother mother father friend
stone table door letter house book river hat window chair tree bottle road garden carriage ship key picture wall cup
saw watched touched found followed carried lost noticed took left
old new good white black small great strong clean strange
""".strip().splitlines()
]
PLACES = ("near", "behind", "beside", "above", "below")
OPPOSITES = (
    "good bad,warm cold,happy sad,rich poor,young old,light dark,strong weak,clean dirty,kind cruel,quick slow,"
    "high low,brave afraid,soft hard,open closed,full empty,early late,wise foolish,long short"
)
PAIRS_OF_WORDS = [tuple(pair.split()) for pair in OPPOSITES.split(",")]
SIZE = {"train": 600, "test": 300}  # pairs


def words(of: list, split: str) -> list:
    """Two thirds of a list for training, one third for testing."""
    return [word for number, word in enumerate(of) if (number % 3 == 1) == (split == "test")]


def agreement(split: str, draw: random.Random) -> tuple[str, str]:
    """The verb agrees with the first noun, not with the nearer one: the nouns trade places."""
    one, other = draw.sample(words(THINGS, split), 2)
    ending, nearer, verb = draw.choice((("", "s", "is"), ("s", "", "are")))
    place, quality = draw.choice(PLACES), draw.choice(WAS)
    right = f"the {one}{ending} {place} the {other}{nearer} {verb} {quality}"
    return right, f"the {other}{nearer} {place} the {one}{ending} {verb} {quality}"


def arguments(split: str, draw: random.Random) -> tuple[str, str]:
    """What lives does something to a thing; the other way round it is nonsense."""
    who, what, did = draw.choice(words(LIVING, split)), draw.choice(words(THINGS, split)), draw.choice(SAW)
    return f"the {who} {did} the {what}", f"the {what} {did} the {who}"


def negation(split: str, draw: random.Random) -> tuple[str, str]:
    """One of two opposites is denied; "right" is the first of a pair of words, the pleasant or greater one."""
    first, second = draw.choice(words(PAIRS_OF_WORDS, split))
    who = draw.choice(("it", "he", "she", "the day", "the house", "the answer"))
    said = draw.choice(("{} was {}, not {}", "{} was {} and not {}", "i know that {} was {}, not {}"))
    return said.format(who, first, second), said.format(who, second, first)


TASKS: dict[str, Callable[[str, random.Random], tuple[str, str]]] = {
    "agreement": agreement,
    "arguments": arguments,
    "negation": negation,
}


def sentences(path: Path) -> list[list[str]]:
    """Of 6 to 14 words without signs, in small letters: those of a book, or the rows of a table."""
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            found = [row["text"] for row in csv.DictReader(file)]
    else:
        found = re.findall(r"[A-Z][^.!?\n]{20,90}(?=[.!?])", path.read_text())
    plain = [[re.sub(r"[^\w']", "", word).lower() for word in sentence.split()] for sentence in found]
    return [sentence for sentence in plain if 6 <= len(sentence) <= 14]


def order(natural: list[list[str]], split: str, draw: random.Random) -> list[tuple[str, str]]:
    """Sentences, and the same words shuffled; every third sentence is one of the test split."""
    mine = words(natural, split)
    pairs = []
    for sentence in draw.sample(mine, min(SIZE[split], len(mine))):
        shuffled = draw.sample(sentence, len(sentence))
        if shuffled != sentence:
            pairs.append((" ".join(sentence), " ".join(shuffled)))
    return pairs


def write(path: Path, pairs: list[tuple[str, str]], draw: random.Random) -> None:
    """A table of both sentences of all pairs, mixed."""
    rows = [(sentence, label) for pair in pairs for sentence, label in zip(pair, ("right", "wrong"), strict=True)]
    draw.shuffle(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def main(argv: list[str]) -> None:
    """Writes all tasks. SystemExit: no folder is named."""
    places = [argument for argument in argv if "=" not in argument]
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    if len(places) != 1 or set(given) - {"text", "seed"}:
        raise SystemExit(__doc__)
    for split, size in SIZE.items():
        for name, pair in TASKS.items():
            draw = random.Random(f"{name} {split} {given.get('seed', 0)}")
            write(Path(places[0]) / name / f"{split}.csv", [pair(split, draw) for _ in range(size)], draw)
        if "text" in given:
            draw = random.Random(f"order {split} {given.get('seed', 0)}")
            twins = order(sentences(Path(given["text"])), split, draw)
            write(Path(places[0]) / "order" / f"{split}.csv", twins, draw)


if __name__ == "__main__":
    main(sys.argv[1:])
