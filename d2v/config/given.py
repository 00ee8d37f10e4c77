"""Where a setting was given: in a YAML file or one of its bases, or on the command line; a default is nobody's."""

from pathlib import Path

from d2v.config.bases import chain
from d2v.config.differences import flattened
from d2v.config.find import find_config
from d2v.config.written import Argument, section_of

COMMAND_LINE = "the command line"


def given(path: str | Path, overrides: list[str]) -> dict[str, str]:
    """The place of each setting that was given, by its dotted name: the file whose value counts, or COMMAND_LINE.

    `overrides`: `key=value`, or further configs.
    """
    places = _in_files(path)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            places |= _in_files(override)
        else:
            section = section_of(Argument(value))  # a dict: several at once
            places |= dict.fromkeys(flattened(section, key) if section else [key], COMMAND_LINE)
    return places


def _in_files(path: str | Path) -> dict[str, str]:
    """The file of each setting of a config, with its bases."""
    places: dict[str, str] = {}
    for file, values in reversed(chain(find_config(path))):
        places |= dict.fromkeys(flattened(values), str(file))
    return places
