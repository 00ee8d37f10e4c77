"""Names of splits that mean the same, and what becomes of each split of the data, in a line for a person."""

from collections.abc import Mapping, Sequence

FAMILIES = (  # names that mean one split, as `datasets` knows them
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
KNOWN = {name for family in FAMILIES for name in family}


def same_split(name: str, split: str) -> bool:
    """Whether a folder or file of this name holds this split."""
    name, split = name.lower(), split.lower()
    return name == split or any(name in family and split in family for family in FAMILIES)


def is_split(name: str) -> bool:
    """Whether this is the name of a split."""
    return name.lower() in KNOWN


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
        names = [name for name in left if any(same_split(name, part) for part in parts)]
        left = [name for name in left if name not in names]
        if names:
            said.append(f"{asked if '[' in asked else ' and '.join(names)} {use}")
    if left:
        advice = f" ({'; '.join(more)})" if more else ""
        said.append(f"not read: {', '.join(left)}{advice}")
    return f"splits: {'; '.join(said)}"


def has_split(splits: Sequence[str], split: str) -> bool:
    """Whether one of them is meant by this name."""
    return any(same_split(name, split) for name in splits)
