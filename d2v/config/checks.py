"""What is checked of every section before its dataclass is made."""

import dataclasses
import difflib
from typing import Any

from omegaconf import DictConfig

from d2v.config.bases import origin


def check_keys(values: Any, allowed: tuple[str, ...], where: str, path: Any) -> None:
    """ValueError: a key that is not among `allowed`, with a suggestion."""
    for key in values:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it may be {', '.join(allowed)}"
            name = f"{where}.{key}".lstrip(".")
            raise ValueError(f"unknown key {name!r} ({origin(path, name)} or the command line); {hint}")


def _check_fields(kind: type, values: Any, where: str, path: Any) -> None:
    """ValueError: a key that is no field of a dataclass, or of one that it holds."""
    fields = {f.name: f.default_factory for f in dataclasses.fields(kind)}
    check_keys(values, tuple(fields), where, path)
    for name, inner in values.items():
        if isinstance(inner, dict | DictConfig) and dataclasses.is_dataclass(fields[name]):
            _check_fields(fields[name], inner, f"{where}.{name}", path)  # type: ignore[arg-type]
