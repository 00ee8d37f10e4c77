"""Where a setting was given: in a YAML file or one of its bases, or on the command line; a default is nobody's."""

from pathlib import Path
from typing import Any

from d2v.config.bases import chain
from d2v.config.differences import flattened

COMMAND_LINE = "the command line"


def given(path: str | Path, overrides: list[str], values: dict) -> dict[str, str]:
    """The place of each setting that was given, by its dotted name: the file whose value counts, or COMMAND_LINE.

    `values`: what the file, its bases and the overrides come to.
    """
    places: dict[str, str] = {}
    for file, own in reversed(chain(Path(path))):
        places |= dict.fromkeys(flattened(own), str(file))
    for override in overrides:
        key = override.partition("=")[0]
        places |= dict.fromkeys(flattened(_at(values, key.split(".")), key), COMMAND_LINE)
    return places


def _at(values: Any, keys: list[str]) -> Any:
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    return values
