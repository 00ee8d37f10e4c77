"""Checks that relate settings of data to one another; `where` is the section that holds them."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from d2v.settings import default_of


def check_settings(config: Any, *settings: tuple[str, bool, str], where: str = "data") -> None:
    """ValueError: the first setting of (name, whether it is good, what is allowed) that is not good."""
    for name, good, allowed in settings:
        if not good:
            raise ValueError(f"{where}.{name} is {getattr(config, name)}; it must be {allowed}")


def check_ranges(config: Any, *names: str, where: str = "data") -> None:
    """ValueError: the first setting of `names`, each a pair or None, whose second value is below its first."""
    for name in names:
        pair = getattr(config, name)
        if pair is not None and pair[0] > pair[1]:
            raise ValueError(f"{where}.{name} is {list(pair)}; it must be [least, most]")


def check_unread(config: Any, names: Iterable[str], why: str, where: str = "data") -> None:
    """ValueError: the first setting of `names` that has another value than its default, though nothing reads it."""
    defaults = {one.name: default_of(one) for one in fields(config)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise ValueError(f"{where}.{name} is {getattr(config, name)}, and nothing reads it: {why}")


def check_views(views: list[str], known: tuple[str, ...]) -> None:
    """ValueError: data.views holds a name that is not known."""
    for name in views:
        if name not in known:
            raise ValueError(f"data.views holds {name!r}; it may hold {', '.join(known)}")


def check_masked_views(config: Any, of_masks: tuple[str, ...]) -> None:
    """ValueError: data.mask_views without views, or settings that only masked views read without these.

    `of_masks`: settings of masks that views read if they are masked.
    """
    if config.mask_views and not config.views:
        raise ValueError("data.mask_views is true, but data.views is empty: name views, or leave it out")
    if config.views and not config.mask_views:
        check_unread(config, of_masks, "data.views hides nothing, unless data.mask_views=true")
    if not config.mask_views:
        check_unread(config, ["mask_chance"], "it is of masked views: set data.mask_views=true")


def in_order(values: list[float], low: float, high: float) -> bool:
    """Whether a range of two values lies in [low, high]."""
    return len(values) == 2 and low <= values[0] <= values[1] <= high
