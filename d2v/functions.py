"""The commands as Python functions: `d2v.pretrain("image/data2vec_tiny", data={"path": "photos"}, run={"dir": "r"})`.

A config is a file or one of `d2v configs`. Settings are nested dictionaries, or {"data.path": ...} with two stars.
ValueError: whatever a command says in a line.
"""

import importlib
import json
from pathlib import Path
from typing import Any


def pretrain(config: str | Path, **settings: Any) -> Path:
    """Trains an encoder, as scripts/pretrain.py; the folder that `from_pretrained` loads."""
    return _call("pretrain", str(config), *arguments(settings))


def finetune(config: str | Path, model: str | Path = "", **settings: Any) -> dict[str, dict[str, float]]:
    """Learns labels, as scripts/finetune.py; the scores by split.

    `model`: where the encoder is; empty: training is from scratch.
    """
    return _call("finetune", str(config), *([f"model={model}"] if model else []), *arguments(settings))


def evaluate(config: str | Path, model: str | Path, **settings: Any) -> dict[str, Any]:
    """Scores an encoder beside random inits, as scripts/evaluate.py; what its JSON file holds."""
    return _call("evaluate", str(config), f"model={model}", *arguments(settings))


def embed(config: str | Path, model: str | Path, out: str | Path, **settings: Any) -> Path:
    """Writes features, as scripts/embed.py; the table's path."""
    _call("embed", str(config), f"model={model}", f"out={out}", *arguments(settings))
    return Path(out)


def convert(source: str | Path, target: str | Path, *, modality: str = "", overwrite: bool = False) -> Path:
    """Converts a model, as scripts/convert.py; the target.

    `modality`: which one to take out of a model of several.
    """
    options = [*([f"modality={modality}"] if modality else []), *(["run.overwrite=true"] if overwrite else [])]
    _call("convert", str(source), str(target), *options)
    return Path(target)


def arguments(settings: dict[str, Any], where: str = "") -> list[str]:
    """Nested settings as `key=value`. ValueError: a value that a YAML file could not hold."""
    found = []
    for name, value in settings.items():
        key = f"{where}{name}"
        if isinstance(value, dict) and value:
            found += arguments(value, f"{key}.")
        elif isinstance(value, str | Path):
            found.append(f"{key}={value}")
        else:
            try:
                found.append(f"{key}={json.dumps(value)}")
            except TypeError:
                raise ValueError(f"{key} is {value!r}; it may be a number, a string, a list or a dictionary") from None
    return found


def _call(name: str, *given: str) -> Any:
    """A script's main; imported now, since most programs that import d2v run none."""
    return importlib.import_module(f"d2v.scripts.{name}").main(list(given))
