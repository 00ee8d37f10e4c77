"""Checks of settings that the modalities have in common; `where` is the section that holds them."""

import dataclasses
from collections.abc import Iterable
from typing import Any


def check_settings(config: Any, *settings: tuple[str, bool, str], where: str = "data") -> None:
    """ValueError: the first setting of (name, whether it is good, what is allowed) that is not good."""
    for name, good, allowed in settings:
        if not good:
            raise ValueError(f"{where}.{name} is {getattr(config, name)}; it must be {allowed}")


def check_unread(config: Any, names: Iterable[str], why: str, where: str = "data") -> None:
    """ValueError: the first setting of `names` that has another value than its default, though nothing reads it."""
    defaults = {f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory() for f in dataclasses.fields(config)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"{where}.{name} is {getattr(config, name)}, and nothing reads it: {why}")


def check_views(views: list[str], known: tuple[str, ...]) -> None:
    """ValueError: data.views holds a name that is not known."""
    for name in views:
        if name not in known:
            raise ValueError(f"data.views holds {name!r}; it may hold {', '.join(known)}")


def in_order(values: list[float], low: float, high: float) -> bool:
    """Whether a range of two values lies in [low, high]."""
    return len(values) == 2 and low <= values[0] <= values[1] <= high
