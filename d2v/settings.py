"""How a dataclass of settings declares a field: its default, one sentence, what it may be, and when it is read."""

import copy
import functools
import math
import types
import typing
from collections.abc import Iterator, Set
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import Any

LARGEST = 1e9  # of any number that declares no other limit
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
PLURALS = {int: "whole numbers", float: "numbers", str: "names"}


@dataclass(frozen=True)
class Allowed:
    """What a setting may be; of a list, each of its entries. A number must be finite in any case, and None passes."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    among: tuple[str, ...] | None = None
    count: int | None = None  # entries of a list
    limit: float = LARGEST  # beyond which a number would mean nothing, or fill any memory; said only where it is met

    def passes(self, value: Any) -> bool:
        """Whether one value, of a list one entry, is allowed."""
        if self.among is not None:
            return value in self.among
        if not isinstance(value, int | float) or isinstance(value, bool):
            return True
        return (
            -LARGEST <= value <= self.limit
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def beyond(self, value: Any) -> str:
        """What else to say of a value that is refused: "", or the limit that it is beyond."""
        if not isinstance(value, int | float) or value != value or abs(value) == math.inf:
            return ""
        if -LARGEST <= value <= self.limit:
            return ""
        return f", and at most {_number(self.limit)}" if value > 0 else f", and at least {_number(-LARGEST)}"

    def __str__(self) -> str:
        """The end of a sentence that begins with the setting: `it must be at least 1`."""
        if self.among is not None:
            return f"it may be {', '.join(repr(value) if value == '' else value for value in self.among)}"
        if (self.above, self.most, self.below) == (None, None, None) and self.least == 0:
            return "it must be 0 or more"
        if (self.least, self.most, self.below) == (None, None, None) and self.above == 0:
            return "it must be a positive number"
        low = [f"at least {_number(self.least)}"] if self.least is not None else []
        low += [f"above {_number(self.above)}"] if self.above is not None else []
        high = [f"at most {_number(self.most)}"] if self.most is not None else []
        high += [f"below {_number(self.below)}"] if self.below is not None else []
        return f"it must be {' and '.join(low + high) or 'a finite number'}"


@dataclass(frozen=True)
class Readers:
    """Under which other settings one is read; under others its default alone is accepted.

    `cases`: conditions, one of which must hold. A condition is a dict of other settings, each of which must be as it
    says: True: set, which 0, false, null and what is empty are not; False: not set; a text, or one of several; or what
    a function of its value is true of. A name without dots is of the same section.
    """

    cases: tuple[dict[str, Any], ...]
    why: str = ""  # what the error says where the first setting that is named is in the way; empty: how that is set


def setting(
    default: Any, sentence: str, *, place: bool = False, only: Any = None, why: str = "", **allowed: Any
) -> Any:
    """A dataclass field: its default (a list is copied), what it means in one sentence, and what it may be.

    `place`: a path, whose `~` is the home folder. `only`, `why`: see Readers; one condition, or a list. `allowed`: see
    Allowed.
    """
    cases = () if only is None else tuple(only) if isinstance(only, list) else (only,)
    metadata = {"sentence": sentence, "allowed": Allowed(**allowed), "place": place, "readers": Readers(cases, why)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def of_teacher(default: Any, sentence: str, *, only: Any = None, **allowed: Any) -> Any:
    """As setting, of how a teacher follows its student: nothing reads it where the teacher is never updated."""
    return setting(default, sentence, only={**(only or {}), "train.update_teacher": True}, **allowed)


def section(kind: type, sentence: str) -> Any:
    """A dataclass field that holds further settings."""
    return field(default_factory=kind, metadata={"sentence": sentence})


def check_fields(settings: Any, where: str) -> None:
    """ValueError: the first field of a dataclass whose value is not allowed, or is not read though it is set.

    `where`: its section, as users write it.
    """
    check_values(settings, where)
    check_readers({where: settings})


def check_values(settings: Any, where: str) -> None:
    """ValueError: the first field of a dataclass whose value is not allowed. `where`: as in check_fields."""
    hints = hints_of(type(settings))
    for one in fields(settings):
        value, allowed = getattr(settings, one.name), one.metadata.get("allowed")
        if allowed is None:
            continue
        name, shown = f"{where}.{one.name}", shortened(value)
        if not _is_of(value, hints[one.name]):
            raise ValueError(f"{name} is {shown}; it must be {type_name(hints[one.name])}")
        if value is None:
            continue
        entries = value if isinstance(value, list | tuple) else [value]
        if allowed.count is not None and len(entries) != allowed.count:
            raise ValueError(f"{name} is {shown}; it must have {allowed.count} entries")
        for entry in entries:
            if not allowed.passes(entry):
                raise ValueError(f"{name} is {shown}; {allowed}{allowed.beyond(entry)}")


def check_readers(sections: dict[str, Any]) -> None:
    """ValueError: the first setting that has another value than its default, though nothing reads it.

    `sections`: dataclasses by their names, as users write them. Conditions on settings of others hold.
    """
    for where, one, failing in _not_read(sections):
        readers, value = one.metadata["readers"], getattr(with_inner(sections)[where], one.name)
        first = next(iter(readers.cases[0])).rpartition(".")[2]
        why = readers.why if failing[0].endswith(f".{first}") else ""
        raise ValueError(_unread(f"{where}.{one.name}", value, why, failing[0], with_inner(sections), one))


def stepping_aside(sections: dict[str, Any], typed: Set[str]) -> list[str]:
    """The settings that a recipe sets and that nothing reads because of one that was `typed`; they get their defaults.

    A user who chooses another optimizer did not write the recipe's betas, and cannot leave them out.
    """
    found: list[str] = []
    goes_on = True
    while goes_on:  # one that steps aside may be what another is read under
        goes_on = False
        for where, one, failing in [*_not_read(sections)]:
            if f"{where}.{one.name}" not in typed and not {*typed, *found}.isdisjoint(failing):
                setattr(with_inner(sections)[where], one.name, default_of(one))
                found.append(f"{where}.{one.name}")
                goes_on = True
    return found


def _not_read(sections: dict[str, Any]) -> Iterator[tuple[str, Field, list[str]]]:
    """The section and field of each setting that has another value than its default, though nothing reads it.

    And for each case in which it were read, the first setting that is not so.
    """
    everything = with_inner(sections)
    for where, settings in everything.items():
        for one in fields(settings):
            readers = one.metadata.get("readers")
            if readers is None or not readers.cases or getattr(settings, one.name) == default_of(one):
                continue
            failing = [_failing(case, where, everything) for case in readers.cases]
            if None not in failing:
                yield where, one, [str(name) for name in failing]


def with_inner(sections: dict[str, Any]) -> dict[str, Any]:
    """Sections and, by their own names, those that they hold."""
    found = {}
    for where, settings in sections.items():
        found[where] = settings
        inner = {f"{where}.{one.name}": getattr(settings, one.name) for one in fields(settings)}
        found |= with_inner({name: value for name, value in inner.items() if is_dataclass(value)})
    return found


def _failing(case: dict[str, Any], where: str, sections: dict[str, Any]) -> str | None:
    """The whole name of the first setting that is not as a condition says; None if all are, or are not known."""
    for name, wanted in case.items():
        place, _, last = (name if "." in name else f"{where}.{name}").rpartition(".")
        if place not in sections and place.partition(".")[0] not in sections:
            continue
        value = vars(sections[place]).get(last) if place in sections else None  # this method or data has no such one
        if isinstance(wanted, bool):
            holds = bool(value) == wanted
        elif callable(wanted):
            holds = wanted(value)
        else:
            choices = (wanted,) if isinstance(wanted, str) else wanted
            holds = any(entry in choices for entry in (value if isinstance(value, list) else [value]))
        if not holds:
            return f"{place}.{last}"
    return None


def _unread(name: str, value: Any, why: str, other: str, sections: dict[str, Any], one: Field) -> str:
    place, _, last = other.rpartition(".")
    found = vars(sections[place]).get(last) if place in sections else None
    cure = f"leave it out, or give it its default, {shortened(default_of(one))}"
    if isinstance(found, str) and found and not why:
        return f"{name} is {shortened(value)}, which {other}={found} does not read: {cure}"
    reason = (
        why
        or f"{other} is {'empty' if found in ('', []) else str(found).lower() if isinstance(found, bool) else found}"
    )
    return f"{name} is {value}, and nothing reads it: {reason}: {cure}"


@functools.cache
def hints_of(kind: type) -> dict[str, Any]:
    """The types of the fields of a dataclass."""
    return typing.get_type_hints(kind)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field declares; what is no text, number, list or null passes."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_is_of(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is list:
        (entry,) = typing.get_args(hint)
        return isinstance(value, list | tuple) and all(_is_of(one, entry) for one in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if hint in (bool, str, type(None)) else True


def type_name(kind: Any) -> str:
    """A type in words."""
    if typing.get_origin(kind) is list:
        return f"a list of {PLURALS.get(typing.get_args(kind)[0], 'values')}"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return ", or ".join(type_name(part) if part is not type(None) else "null" for part in typing.get_args(kind))
    return WORDS.get(kind, "")


def shortened(value: Any) -> str:
    """A value as an error shows it: a text in quotes, and not the whole of a long one."""
    shown = repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def default_of(one: Field) -> Any:
    """The default of a dataclass field; MISSING if it has none."""
    return one.default_factory() if one.default_factory is not MISSING else one.default


def defaults_of(settings: Any) -> Any:
    """A dataclass of settings, or dictionaries of them, as dictionaries that hold the defaults of all its fields."""
    if isinstance(settings, dict):
        return {name: defaults_of(value) for name, value in settings.items()}
    found = {}
    for one in fields(settings):
        value = getattr(settings, one.name)
        if is_dataclass(value) or (isinstance(value, dict) and any(map(is_dataclass, value.values()))):
            found[one.name] = defaults_of(value)
        elif default_of(one) is not MISSING:
            found[one.name] = default_of(one)
    return found


def places_in(settings: Any, where: str = "") -> list[str]:
    """The dotted names of settings that are paths, in a dataclass or dictionaries of them."""
    found = []
    for name, value in (settings if isinstance(settings, dict) else vars(settings)).items():
        inner = f"{where}.{name}".lstrip(".")
        if isinstance(value, dict) or is_dataclass(value):
            found += places_in(value, inner)
        elif is_dataclass(settings) and _is_place(settings, name):
            found.append(inner)
    return found


def _is_place(settings: Any, name: str) -> bool:
    return any(one.name == name and one.metadata.get("place") for one in fields(settings))


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
