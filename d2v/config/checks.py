"""What is checked of every section before its dataclass is made."""

import difflib
from typing import Any

from d2v.config.bases import origin


def check_keys(values: Any, allowed: tuple[str, ...], where: str, path: Any) -> None:
    """ValueError: a key that is not among `allowed`, with a suggestion."""
    for key in values:
        if key not in allowed:
            close = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it may be {', '.join(allowed)}"
            name = f"{where}.{key}".lstrip(".")[:200]
            raise ValueError(f"unknown key {name!r} ({origin(path, name)} or the command line); {hint}")
