"""Checks that relate settings of data, or inputs, to one another; `where` is the section that holds settings."""

from typing import Any

from torch import Tensor

# why a setting of masks is not read
HIDDEN = "data.views hides nothing, unless data.mask_views=true"
OF_MASKED_VIEWS = "it is of masked views: set data.mask_views=true"


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


def check_attention_mask(mask: Tensor | None, values: Tensor, name: str) -> None:
    """ValueError: it is of another shape than the input `name`, whose padding it tells."""
    if mask is not None and mask.shape != values.shape:
        shapes = f"{tuple(mask.shape)}; it must be that of {name}, {tuple(values.shape)}"
        raise ValueError(f"attention_mask has the shape {shapes}")


def check_views(views: list[str], known: tuple[str, ...]) -> None:
    """ValueError: data.views holds a name that is not known."""
    for name in views:
        if name not in known:
            raise ValueError(f"data.views holds {name!r}; it may hold {', '.join(known)}")


def in_order(values: list[float], low: float, high: float) -> bool:
    """Whether a range of two values lies in [low, high]."""
    return len(values) == 2 and low <= values[0] <= values[1] <= high
