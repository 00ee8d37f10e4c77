"""What differs between two sets of settings."""

import os
from collections.abc import Collection
from typing import Any


def changes(old: dict, new: dict, places: Collection[str] = ()) -> list[str]:
    """One "section.key: old -> new" for each setting that differs between nested dictionaries.

    Of those that `places` names, paths, another spelling of the same place is no difference.
    """
    before, after = flattened(old), flattened(new)
    changed = []
    for key in sorted(before.keys() | after.keys()):
        one, other = before.get(key), after.get(key)
        if one != other and not (key in places and located(one) == located(other)):
            changed.append(f"{key}: {one} -> {other}")
    return changed


def located(place: Any) -> Any:
    """A path, or a list of some, as the one name that all its spellings have; `demo` and what is empty are no paths."""
    if isinstance(place, list | tuple):
        return [located(one) for one in place]
    if not isinstance(place, str | os.PathLike) or place in ("", "demo"):
        return place
    return os.path.realpath(os.path.expanduser(place))  # noqa: PTH111  # a name on the Hub is no path of a Path


def flattened(values: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested dictionaries by their dotted names."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}.{key}".lstrip("."))
    return flat
