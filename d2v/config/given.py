"""Where a setting was given: in a YAML file or one of its bases, or on the command line; a default is nobody's."""

from pathlib import Path

from omegaconf import OmegaConf

from d2v.config.bases import chain
from d2v.config.differences import flattened

COMMAND_LINE = "the command line"


def given(path: str | Path, overrides: list[str]) -> dict[str, str]:
    """The place of each setting that was given, by its dotted name: the file whose value counts, or COMMAND_LINE."""
    places: dict[str, str] = {}
    for file, values in reversed(chain(Path(path))):
        places |= dict.fromkeys(flattened(values), str(file))
    for override in overrides:
        key, _, value = override.partition("=")
        keys = [key]
        if value.lstrip().startswith("{"):  # several at once
            keys = list(flattened(OmegaConf.to_container(OmegaConf.from_dotlist([override]))))
        places |= dict.fromkeys(keys, COMMAND_LINE)
    return places
