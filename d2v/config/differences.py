"""What differs between two sets of settings."""

from typing import Any


def changes(old: dict, new: dict) -> list[str]:
    """One "section.key: old -> new" for each setting that differs between nested dictionaries."""
    before, after = flattened(old), flattened(new)
    keys = sorted(before.keys() | after.keys())
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def flattened(values: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested dictionaries by their dotted names."""
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}.{key}".lstrip("."))
    return flat
