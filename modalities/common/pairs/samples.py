"""The samples of both sides of pairs, and which of them belong together.

n pairs, G groups of samples of the second side that may be one's partner.
"""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from d2v.evaluation.class_names import class_names, in_order
from d2v.modalities.common import tables
from d2v.modalities.common.data_report import Report
from d2v.modalities.common.pairs.config import PairConfig, key_of, section_of_side, side_named, side_of
from d2v.protocols import Rows


class Samples:
    """The pairs of a split: of rows those that both sides can read, of classes every sample that has a partner.

    A pair is a sample of the first side, `first` (n,), and one of the second that is drawn from its group, `groups`
    (n,): `members` of group g are samples of the second side. Of rows a group is the one sample of the same row.
    """

    def __init__(self, data: PairConfig, frontends: dict[str, Any], *, split: str, folder: Path):
        """`frontends`: FrontendConfigs by modality. ValueError: a side cannot be opened, there is nothing that both
        have, or too much of it is bad."""
        self.by, self.names = data.by, list(data.modules)
        sources = open_sides(data, split)
        self.sides: dict[str, Any] = {}
        for name, module in data.modules.items():
            with side_named(data, name):
                side = side_of(data, name, split)
                rows = Rows(sources[name], 0, whole=True)
                self.sides[name] = module.Samples(side, frontends[name], split=split, folder=folder, rows=rows)
        first = self.sides[self.names[0]]
        self.report = Report("+".join(map(key_of, self.names)), found=len(sources[self.names[0]]), usable=0)
        self.report.splits = first.report.splits
        self.first: np.ndarray  # (n,)
        self.groups: np.ndarray  # (n,)
        self.members: Sequence[np.ndarray] | np.ndarray  # G of (any,)
        self.classes: list[str] | None = None  # of groups
        if data.by == "row":
            self._match_rows(data, sources, split)
        else:
            self._match_classes(data)
        self.ids = [first.ids[index] for index in self.first]
        self.lengths = None if first.lengths is None else first.lengths[self.first]
        self.report.usable = len(self.first)
        where = data.path or " and ".join(str(side_of(data, name).path) for name in self.names)
        self.report.check(data.max_bad_share, where)

    def __len__(self) -> int:
        return len(self.first)

    def side(self, modality: str) -> Any:
        """All usable samples of one side, as the modality's own Samples."""
        return self.sides[modality]

    def matched(self, modality: str) -> np.ndarray:
        """(n,) which samples of one side the pairs are of; of classes, on the second side, the first of each group."""
        if modality == self.names[0]:
            return self.first
        if isinstance(self.members, np.ndarray):
            return self.members[:, 0]
        return np.array([self.members[group][0] for group in self.groups.tolist()], dtype=np.int64)

    def _match_rows(self, data: PairConfig, sources: dict[str, Any], split: str) -> None:
        """Rows that both sides have; what one of them cannot read is reported once."""
        counts = {name: len(source) for name, source in sources.items()}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count} of {name}" for name, count in counts.items())
            divided = [name for name, source in sources.items() if "split" in getattr(source, "column_names", ())]
            cause = f" (a column split divides the rows of {', '.join(divided)})" if divided else ""
            raise ValueError(f"data.by=row: the sides have different numbers of rows, {said}: they are no pairs{cause}")
        first, second = self.sides.values()
        rows = np.intersect1d(first.rows, second.rows)  # both are sorted
        self.first = np.searchsorted(first.rows, rows)
        self.groups = np.arange(len(rows))
        self.members = np.searchsorted(second.rows, rows)[:, None]  # (n, 1)
        reasons: dict[int, list[str]] = {}  # of bad rows
        ids = {name: tables.identifiers(source, side_of(data, name).path, split) for name, source in sources.items()}
        for name, side in self.sides.items():
            bad = dict([*side.report.unreadable, *side.report.too_short])
            for row in np.setdiff1d(np.arange(counts[name]), side.rows).tolist():
                reasons.setdefault(row, []).append(f"{name}: {bad.get(ids[name][row], 'an empty line')}")
        one, other = ids.values()
        if sources[self.names[0]] is not sources[self.names[1]]:
            self.report.notes += _in_order(self.names, one, other)
        of_first = ids[self.names[0]]
        self.report.unreadable = [(of_first[row], "; ".join(why)) for row, why in sorted(reasons.items())]
        for name, side in self.sides.items():
            self.report.notes += [f"{name}: {line}" for line in (side.report.sizes, *side.report.notes) if line]

    def _match_classes(self, data: PairConfig) -> None:
        """Samples of classes that both sides have; others are said and left out."""
        names, labels = {}, {}
        for name, side in self.sides.items():
            column = section_of_side(data, name).label or data.label
            try:
                names[name] = class_names(side, column)
            except ValueError as error:
                raise ValueError(f"data.by=class: data.label {column!r} of the {name} side: {error}") from None
            labels[name] = in_order(names[name], side.classes)
            count, *lines = side.report.lines()
            self.report.notes += [f"{name}: {line}" for line in (count.partition(": ")[2], *lines)]
        one, other = self.names
        self.classes = [label for label in labels[one] if label in set(labels[other])]
        for name in self.names:
            lacking = [label for label in labels[name] if label not in self.classes]
            if lacking:
                some = ", ".join(lacking[:10]) + (", ..." if len(lacking) > 10 else "")
                self.report.notes.append(f"left out, as only {name} has them: {len(lacking)} classes: {some}")
        if not self.classes:
            raise ValueError(
                f"data.by=class: the sides share no class: {one} has {', '.join(labels[one][:5]) or 'none'}, "
                f"{other} has {', '.join(labels[other][:5]) or 'none'}"
            )
        number = {label: place for place, label in enumerate(self.classes)}
        of_first = np.array([number.get(label, -1) for label in names[one]])
        of_second = np.array([number.get(label, -1) for label in names[other]])
        self.first = np.flatnonzero(of_first >= 0)
        self.groups = of_first[self.first]
        self.members = [np.flatnonzero(of_second == group) for group in range(len(self.classes))]
        self.report.notes.append(f"pairs by class: {len(self.classes)} classes: {', '.join(self.classes[:20])}")


def _in_order(names: list[str], one: Sequence[str], other: Sequence[str]) -> list[str]:
    """What is said of rows of two sources, which are paired by their order. ValueError: their names are, in another."""
    first = [PurePath(name).stem for name in one]
    second = [PurePath(name).stem for name in other]
    if first == second:
        return []
    if sorted(first) == sorted(second):
        row = next(row for row, stem in enumerate(first) if stem != second[row])
        raise ValueError(
            f"data.by=row: row {row + 1} is {one[row]} of {names[0]} and {other[row]} of {names[1]}: both sides name "
            "the same files, in different orders; a table with a column for each side pairs them"
        )
    return [f"paired by the order of rows: {one[0]} of {names[0]} with {other[0]} of {names[1]}"]


def open_sides(data: PairConfig, split: str) -> dict[str, Any]:
    """The rows of each side, unread: the same data set for both, unless one side has a path of its own.

    ValueError: it cannot be opened, or has no column for one of them.
    """
    sides = {name: side_of(data, name, split) for name in data.modules}
    sharing = _sharing(data)
    found, shared = {}, None
    for name in sharing if len(sharing) > 1 else []:
        with side_named(data, name):
            shared = data.modules[name].Side.open(sides[name], sides[name].split)
        if shared is not None:
            break
    for name, side in sides.items():
        with side_named(data, name):
            is_shared = shared is not None and name in sharing
            found[name] = shared if is_shared else data.modules[name].Samples.open(side, side.split)
    if shared is not None:
        _check_columns(data, sides, shared)
    return found


def _sharing(data: PairConfig) -> list[str]:
    """The sides that have no path of their own. ValueError: nor has the pair one."""
    names = [name for name in data.modules if not section_of_side(data, name).path]
    if names and not data.path:
        own = " and ".join(f"data.{key_of(name)}.path" for name in data.modules)
        raise ValueError(f"data.path is required: a table with columns of both sides, or another such source; or {own}")
    return names


def _check_columns(data: PairConfig, sides: dict[str, Any], source: Any) -> None:
    """ValueError: one data set that has no column for one of the sides, or one and the same for both."""
    columns = {}
    for name, side in sides.items():
        with side_named(data, name):
            columns[name] = data.modules[name].Side.column(side, source)
    one, other = columns
    if columns[one] == columns[other]:
        raise ValueError(
            f"data.path {data.path}: {one} and {other} would both be read from the column {columns[one]!r}; pairs need "
            f"a column for each (its columns are {', '.join(tables.column_names(source))}), as a table has, or "
            "metadata.csv beside the files, or a tar; a table that lies beside them is read by data.path='FOLDER/*.csv'"
        )


def prepare(data: PairConfig, modality: str, frontend: Any, folder: Path, seed: int) -> None:
    """What a run needs of one side before samples are read (a tokenizer); as the modality's own `prepare`.

    ValueError: as there.
    """

    def source() -> Any:
        return open_sides(data, data.split)[modality]

    _sharing(data)
    with side_named(data, modality):
        side = side_of(data, modality)
        data.modules[modality].Side.prepare(side, frontend, folder, seed, source)
