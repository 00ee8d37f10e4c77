"""What differs between two sets of settings."""

from typing import Any


def changes(old: dict, new: dict) -> list[str]:
    """One "section.key: old -> new" for each setting that differs between nested dictionaries."""
    before, after = _flatten(old), _flatten(new)
    keys = sorted(before.keys() | after.keys())
    return [f"{key}: {before.get(key)} -> {after.get(key)}" for key in keys if before.get(key) != after.get(key)]


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}.{key}".lstrip("."))
    return flat
