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
    defaults = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(config)
    }
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"{where}.{name} is {getattr(config, name)}, and nothing reads it: {why}")


def check_views(views: list[str], known: tuple[str, ...]) -> None:
    """ValueError: data.views holds a name that is not known."""
    for name in views:
        if name not in known:
            raise ValueError(f"data.views holds {name!r}; it may hold {', '.join(known)}")


def check_masked_views(config: Any, read: tuple[str, ...]) -> None:
    """ValueError: data.mask_views without views or with a chance out of range; settings of masks, `read` if views have them, without masked views."""
    if config.mask_views and not config.views:
        raise ValueError("data.mask_views is true, but data.views is empty: name views, or leave it out")
    if not 0 < config.mask_chance <= 1:
        raise ValueError(f"data.mask_chance is {config.mask_chance}; it must be above 0 and at most 1")
    if config.views and not config.mask_views:
        check_unread(config, read, "data.views hides nothing, unless data.mask_views=true")
    if not config.mask_views:
        check_unread(config, ["mask_chance"], "it is of masked views: set data.mask_views=true")


def in_order(values: list[float], low: float, high: float) -> bool:
    """Whether a range of two values lies in [low, high]."""
    return len(values) == 2 and low <= values[0] <= values[1] <= high
