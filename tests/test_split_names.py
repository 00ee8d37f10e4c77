"""Which splits have rows in common, by their names alone, against counting them."""

import itertools
import re

import datasets
import pytest

from d2v.split_names import lacking, share_rows, uses

NUMBER = 200
SPLITS = ["train", "training", "test", "train[:50]", "train[40:60]", "train[60:]", "train[:20%]", "train[20%:]"]
SPLITS += ["train[-30%:]", "train[:-80%]", "test[:10]+train[55:58]", "validation+test", "train[:]"]


def rows(split: str) -> set[tuple[str, int]]:
    """What `datasets` takes for it, of splits of NUMBER rows each."""
    names = {"training": "train"}
    split = "+".join(names.get(part, part) for part in split.split("+")).replace("[:]", "")
    found = set()
    for part in datasets.ReadInstruction.from_spec(split).to_absolute(
        dict.fromkeys(("train", "validation", "test"), NUMBER)
    ):
        found |= {(part.splitname, row) for row in range(part.from_ or 0, NUMBER if part.to is None else part.to)}
    return found


def unit(split: str) -> str:
    """What its slices count: percents, rows, or nothing, as it has none."""
    return "%" if "%" in split else "rows" if re.search(r"\d", split) else ""


PAIRS = [pair for pair in itertools.product(SPLITS, SPLITS) if len({unit(split) for split in pair} - {""}) < 2]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_rows_in_common_are_known_by_the_names(one, other):
    assert share_rows(one, other, ()) == bool(rows(one) & rows(other))


def test_what_names_do_not_tell_is_taken_for_different():
    assert not share_rows("train[-10:]", "train[:195]", ()) and not share_rows("train[:50%]", "train[:10]", ())
    assert share_rows("train[-10:]", "train", ()) and share_rows("train", "train[:50%]", ())


def test_a_name_that_begins_like_a_split_is_in_it_unless_that_has_its_own():
    of_librispeech = ["train-clean-100", "train-other-500", "dev-clean", "dev-other"]
    assert share_rows("train", "train-other-500[:5]", of_librispeech)
    assert not share_rows("dev-clean", "dev-other", of_librispeech) and not share_rows("train", "dev", of_librispeech)
    assert not share_rows("train", "train_extra", ["train", "train_extra", "test"])
    said = uses(["train", "train_extra", "test"], {"train": "is trained on", "test": "is scored"})
    assert said == "splits: train is trained on; test is scored; not read: train_extra"
    said = uses(of_librispeech, {"train": "is trained on", "dev-other": "is scored"})
    assert said.startswith(
        "splits: train-clean-100 and train-other-500 is trained on; dev-other is scored; not read: dev"
    )


def test_a_slice_that_lacks_classes_is_told():
    (said,) = lacking("train[80%:]", ["b", "b"], ["a", "b"], "data.test_split")
    assert said.startswith("CAREFUL: data.test_split 'train[80%:]' holds 1 of 2 classes; ")
    assert lacking("train[80%:]", ["b", "a"], ["a", "b"], "x") == lacking("test", ["b"], ["a", "b"], "x") == []
