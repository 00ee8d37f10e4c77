"""What a scan of the data met with, for a person and as a limit."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from d2v.evaluation.class_names import in_order, names_of
from d2v.shown import printable


@dataclass
class Report:
    """What a scan of one split found, and what of it can be used."""

    what: str
    found: int
    usable: int
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # (id, reason)
    too_short: list[tuple[str, str]] = field(default_factory=list)
    too_long: list[tuple[str, str]] = field(default_factory=list)
    classes: dict[str, int] | None = None  # usable samples per class
    remarks: dict[str, list[str]] = field(default_factory=dict)  # what is said of usable samples -> their ids
    amount: str = ""  # "0.55 hours", "3.1M tokens"
    sizes: str = ""  # of a typical sample, beside what the model reads
    advice: str = ""  # where these differ much, the settings that would help
    notes: list[str] = field(default_factory=list)  # how the samples were chosen, and what was left out
    splits: list[str] = field(default_factory=list)  # that the data has; one or none: it is not divided

    def count_classes(self, cells: np.ndarray, classes: Sequence[str] | None, column: str) -> None:
        """Counts the usable samples of each class, `classes` by number if these are known, or notes why it does not."""
        times = np.ones(len(cells), dtype=np.int64)
        total = len(cells)
        if cells.dtype.kind in "iu":
            cells, times = np.unique(cells, return_counts=True)
        try:
            names = names_of(cells, classes, column)
        except ValueError as error:
            self.notes.append(f"classes are not counted: data.label {error}")
            return
        counts = Counter[str | None]()
        for name, number in zip(names, times.tolist(), strict=True):
            counts[name] += number
        without = counts.pop(None, 0)
        if without:
            self.notes.append(f"without a class: {without} of {total} samples (data.label {column!r})")
        others = in_order(set(counts).difference(classes or ()))
        if counts:
            self.classes = {name: counts[name] for name in [*(classes or ()), *others]}

    def lines(self, most: int = 5) -> list[str]:
        """The report for a person: one line each, at `most` so many bad names of a kind."""
        amount = f", {self.amount}" if self.amount else ""
        text = [f"{self.what}: {self.usable} of {self.found} samples usable{amount}"]
        if self.sizes:
            text.append(self.sizes)
        for kind in ("unreadable", "too_short", "too_long"):
            bad = getattr(self, kind)
            if bad:
                named = [f"{name} ({why})" for name, why in bad[:most]]
                more = ", ..." if len(bad) > most else ""
                text.append(f"{kind.replace('_', ' ')}: {len(bad)}: {', '.join(named)}{more}")
        for remark, names in self.remarks.items():
            text.append(f"{remark}: {len(names)}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}")
        if self.classes is not None:
            counts = [f"{name} {count}" for name, count in self.classes.items()]
            text.append(f"classes: {len(counts)}: {', '.join(counts[:20])}{', ...' if len(counts) > 20 else ''}")
        return [printable(line) for line in text + self.notes]

    def check(self, max_bad_share: float, where: Any) -> None:
        """ValueError: nothing is usable, or the share of unreadable and too short samples exceeds `max_bad_share`."""
        bad = self.unreadable + self.too_short
        first = "; ".join(f"{name}: {why}" for name, why in (bad or self.too_long)[:5])
        if self.usable == 0:
            raise ValueError(
                f"none of the {self.found} {self.what} samples of {where} is usable{': ' if first else ''}{first}"
            )
        if len(bad) > max_bad_share * self.found:
            share = len(bad) / self.found
            raise ValueError(
                f"{share:.1%} of the {self.what} samples of {where} are bad, "
                f"data.max_bad_share is {max_bad_share:.1%}: {first}"
            )


class UnreadableError(ValueError):
    """A sample cannot be used; the message says why."""
