"""Names of splits that mean the same, and what becomes of each split of the data, in a line for a person."""

import itertools
import math
import re
from collections.abc import Collection, Mapping, Sequence

FAMILIES = (  # names that mean one split, as `datasets` knows them
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
KNOWN = set(itertools.chain(*FAMILIES))


def same_split(name: str, split: str) -> bool:
    """Whether a folder or file of this name holds this split."""
    name, split = name.lower(), split.lower()
    return name == split or any(name in family and split in family for family in FAMILIES)


def place_of(name: str) -> int:
    """Train first, then validation and test, then all other names."""
    return next((place for place, family in enumerate(FAMILIES) if name.lower() in family), len(FAMILIES))


def family_of(name: str) -> str:
    """The split whose name this begins with, as train of train-clean-100; "": none."""
    begin = re.split(r"[-_. ]", name.lower(), maxsplit=1)[0]
    return next((family[0] for family in FAMILIES if begin in family and begin != name.lower()), "")


def means(asked: str, name: str, splits: Sequence[str] = ()) -> bool:
    """Whether a split that was asked for is the one of this name, of `splits`, or holds it.

    It holds those whose names begin so, as train holds train-clean-100, where none has its plain name: train does not
    hold train_extra beside itself.
    """
    if same_split(name, asked):
        return True
    is_plain = any(same_split(one, asked) for one in splits)
    return is_split(asked) and same_split(family_of(name), asked) and not is_plain


def expanded(split: str, names: Sequence[str]) -> str:
    """What was asked for with the splits that a name holds in its place: train-clean-100+train-other-500 for train."""
    parts = []
    for part in split.split("+"):
        parts += [part] if part in names else [name for name in names if means(part, name, names)] or [part]
    return "+".join(parts)


def is_split(name: str) -> bool:
    """Whether this is the name of a split."""
    return name.lower() in KNOWN


def share_rows(one: str, other: str, splits: Sequence[str]) -> bool:
    """Whether two splits of the same data, which has `splits`, have rows in common; as asked for: train[:100]+dev.

    As far as the names alone tell: not of a slice from the end beside another slice, nor of numbers beside percents.
    """
    return any(_meet(first, second, splits) for first, second in itertools.product(one.split("+"), other.split("+")))


def _meet(one: str, other: str, splits: Sequence[str]) -> bool:
    """The same, of splits that are not joined."""
    (name, first), (other_name, second) = _parts(one), _parts(other)
    if not (means(name, other_name, splits) or means(other_name, name, splits)):
        return False
    if first is None or second is None:  # all of it
        return True
    unit, start, stop = first
    return unit == second[0] and max(start, second[1]) < min(stop, second[2])


def _parts(split: str) -> tuple[str, tuple[str, float, float] | None]:
    """The name, and the unit, first and last of a slice, NaN where that is counted from the end; None: all of it."""
    match = re.fullmatch(r"(.+)\[(-?\d*)(%?):(-?\d*)(%?)\]", split)
    if match is None or not (match[2] or match[4]):
        return split.partition("[")[0], None
    unit, start, stop = match[3] or match[5], float(match[2] or 0), float(match[4] or "inf")
    whole = 100 if unit else math.nan
    return match[1], (unit, start if start >= 0 else whole + start, stop if stop >= 0 else whole + stop)


def uses(splits: Sequence[str], taken: Mapping[str, str], more: Sequence[str] = ()) -> str:
    """What becomes of the splits that the data has, none or one: it is not divided.

    `taken`: what is done with one, such as "is trained on", by how it was asked for (train, train[:100]+dev), the
    training split first. `more`: what would read those that are not read.
    """
    (first, use), *_ = taken.items()
    if len(splits) < 2:
        return f"no splits: {first if '[' in first else 'all'} of it {use}"
    said, left = [], list(splits)
    for asked, use in taken.items():
        parts = [part.partition("[")[0] for part in asked.split("+")]
        names = [name for name in left if _is_of(parts, name, splits)]
        left = [name for name in left if name not in names]
        if names:
            said.append(f"{asked if '[' in asked else ' and '.join(names)} {use}")
    if left:
        advice = f" ({'; '.join(more)})" if more else ""
        said.append(f"not read: {', '.join(left)}{advice}")
    return f"splits: {'; '.join(said)}"


def _is_of(parts: Sequence[str], name: str, splits: Sequence[str]) -> bool:
    """Whether one of the parts of what was asked for means the split of this name."""
    return any(means(part, name, splits) for part in parts)


def has_split(splits: Sequence[str], split: str) -> bool:
    """Whether one of them is meant by this name."""
    return any(means(split, name, splits) for name in splits)


ORDERED = (
    "a slice does not divide data that lies in the order of its classes, as folders do: put some files of each class "
    "below test/ and the others below train/, or give a table a column split"
)


def lacking(split: str, there: Collection[str], classes: Collection[str], setting: str) -> list[str]:
    """What is said of a slice that is scored and lacks classes that are learnt: its scores say little."""
    if "[" not in split or set(classes) <= set(there):
        return []
    return [f"CAREFUL: {setting} {split!r} holds {len(set(there))} of {len(set(classes))} classes; {ORDERED}"]
