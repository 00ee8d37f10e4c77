"""Where a model says how its inputs were prepared: its size, mean, rate or tokenizer, of each modality that it reads.

A model of one modality has the files of its preprocessor and tokenizer beside its weights, as transformers does. One of
several has those of each in a folder of the modality's name, as their names would be the same.
"""

from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_files

from d2v.training.run_folder import EXPORT

FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)


def preparation_of(folder: Path, modality: str) -> Path:
    """Where an export, a run's folder or a name on the Hub says it of a modality: in its folder of that name.

    What has none stays as it is.
    """
    place = folder if folder.exists() else _from_hub(folder, modality)
    for inner in (place / EXPORT / modality, place / modality):
        if any((inner / name).is_file() for name in FILES):
            return inner
    return folder


def _from_hub(name: Path, modality: str) -> Path:
    """Where that folder of a name on the Hub is downloaded to, or the name, if there is nothing to be had."""
    wanted = [f"{modality}/{file}" for file in FILES]
    quietly: Any = {f"_raise_exceptions_for_{reason}": False for reason in ("missing_entries", "connection_errors")}
    try:
        found = cached_files(str(name), wanted, **quietly)
    except OSError:  # no such name
        return name
    return Path(found[0]).parents[1] if found else name


def data_of(settings: dict[str, Any], modality: str) -> dict[str, Any]:
    """The section data of a modality in the settings of a run, which may be of several.

    Then it is that of its own part, or its side of a part of pairs, such as image+text.
    """
    data = settings.get("data") or {}
    if isinstance(data.get(modality), dict):
        return data[modality]
    for name, pairs in data.items():
        if "+" in name and modality in name.split("+"):
            return pairs.get(modality) or {}
    return data
