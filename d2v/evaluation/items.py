"""Units within recordings, such as phones, from a file of the ZeroSpeech challenges (ending .item): one a line.

Its first line names the columns: `#file onset offset #phone prev-phone next-phone speaker`, times in seconds.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

NEEDED, CONTEXT, SPEAKER = ("file", "onset", "offset", "phone"), ("prev-phone", "next-phone"), "speaker"


class Unit(NamedTuple):
    """A line of the file."""

    file: str
    onset: float  # seconds
    offset: float
    phone: str
    context: tuple[str, ...]
    speaker: str


def units_of(file: Path) -> list[Unit]:
    """The units of a file. ValueError: it cannot be read, lacks a column, or has a line that is no unit."""
    try:
        lines = file.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"evaluate.items {file} cannot be read: {error}") from None
    columns = [name.removeprefix("#") for name in lines[0].split()] if lines else []
    if lacking := [name for name in NEEDED if name not in columns]:
        raise ValueError(
            f"evaluate.items {file} has no column {lacking[0]!r}: its first line must name {', '.join(NEEDED)} "
            f"and may name {', '.join(CONTEXT)} and {SPEAKER}; it is {' '.join(columns)[:80]!r}"
        )
    units = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            units.append(_unit(columns, line.split()))
        except ValueError as error:
            raise ValueError(f"evaluate.items {file}, line {number}: {line.strip()[:80]!r}: {error}") from None
    return units


def _unit(columns: list[str], cells: list[str]) -> Unit:
    """ValueError: it is none."""
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells under {len(columns)} columns")
    row = dict(zip(columns, cells, strict=True))
    onset, offset = float(row["onset"]), float(row["offset"])
    if not 0 <= onset < offset < math.inf:
        raise ValueError("it must begin at 0 s or later, and end after that")
    context = tuple(row.get(name, "") for name in CONTEXT)
    return Unit(row["file"], onset, offset, row["phone"], context, row.get(SPEAKER, ""))


def places_of(files: set[str], ids: Sequence[str]) -> dict[str, int]:
    """Where in `ids` each of the files is that is there, by its path or its name, both with or without the ending.

    ValueError: none is there, or a name is that of several.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for place, sample in enumerate(ids):
        path = Path(sample)
        for name in {str(path), path.name, str(path.with_suffix("")), path.stem} & files:
            found[name].append(place)
    double = next((name for name, places in found.items() if len(places) > 1), None)
    if double is not None:
        first, second = (ids[place] for place in found[double][:2])
        raise ValueError(f"{double!r} may be {first} or {second}: name it by its path below data.path")
    if not found:
        raise ValueError(f"none of its {len(files)} recordings is in the data: such as {min(files, default='')!r}")
    return {name: places[0] for name, places in found.items()}
