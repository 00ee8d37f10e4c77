"""Where a model says how its inputs were prepared: its size, mean, rate or tokenizer, of each modality that it reads.

A model of one modality has the files of its preprocessor and tokenizer beside its weights, as transformers does. One of
several has those of each in a folder of the modality's name, as their names would be the same.
"""

from pathlib import Path
from typing import Any

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
    """Where an export, or the folder of a run, says it of a modality: in the folder of that name, or in itself.

    What is no such folder, a name on the Hub or a file, stays.
    """
    for place in (folder / EXPORT / modality, folder / modality):
        if any((place / name).is_file() for name in FILES):
            return place
    return folder


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
