"""How a dataclass of settings declares a field: its default, one sentence, and what it may be."""

import copy
import math
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any


@dataclass(frozen=True)
class Allowed:
    """What a setting may be; of a list, each of its entries. A number must be finite in any case, and None passes."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    among: tuple[str, ...] | None = None
    count: int | None = None  # entries of a list

    def passes(self, value: Any) -> bool:
        """Whether one value, of a list one entry, is allowed."""
        if self.among is not None:
            return value in self.among
        if not isinstance(value, int | float) or isinstance(value, bool):
            return True
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """The end of a sentence that begins with the setting: `it must be at least 1`."""
        if self.among is not None:
            return f"it may be {', '.join(repr(value) if value == '' else value for value in self.among)}"
        if (self.above, self.most, self.below) == (None, None, None) and self.least == 0:
            return "it must be 0 or more"
        if (self.least, self.most, self.below) == (None, None, None) and self.above == 0:
            return "it must be a positive number"
        low = [f"at least {self.least:g}"] if self.least is not None else []
        low += [f"above {self.above:g}"] if self.above is not None else []
        high = [f"at most {self.most:g}"] if self.most is not None else []
        high += [f"below {self.below:g}"] if self.below is not None else []
        return f"it must be {' and '.join(low + high) or 'a finite number'}"


def setting(default: Any, sentence: str, **allowed: Any) -> Any:
    """A dataclass field: its default (a list is copied), what it means in one sentence, and what it may be.

    `allowed`: see Allowed.
    """
    metadata = {"sentence": sentence, "allowed": Allowed(**allowed)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type, sentence: str) -> Any:
    """A dataclass field that holds further settings."""
    return field(default_factory=kind, metadata={"sentence": sentence})


def check_fields(settings: Any, where: str) -> None:
    """ValueError: the first field of a dataclass whose value is not allowed.

    `where`: its section, as users write it.
    """
    for one in fields(settings):
        value, allowed = getattr(settings, one.name), one.metadata.get("allowed")
        if allowed is None or value is None:
            continue
        entries = value if isinstance(value, list) else [value]
        if allowed.count is not None and len(entries) != allowed.count:
            raise ValueError(f"{where}.{one.name} is {value}; it must have {allowed.count} entries")
        if not all(allowed.passes(entry) for entry in entries):
            shown = repr(value) if isinstance(value, str) else value
            raise ValueError(f"{where}.{one.name} is {shown}; {allowed}")


def default_of(one: Field) -> Any:
    """The default of a dataclass field; MISSING if it has none."""
    return one.default_factory() if one.default_factory is not MISSING else one.default


def undocumented(kind: type) -> list[str]:
    """Fields of a dataclass of settings, and of those that it holds, that have no sentence."""
    found = []
    for one in fields(kind):
        if not one.metadata.get("sentence"):
            found.append(one.name)
        inner = one.default_factory
        if is_dataclass(inner):
            found += [f"{one.name}.{name}" for name in undocumented(inner)]  # type: ignore[arg-type]
    return found
