"""The commands as Python functions: `d2v.pretrain("image/data2vec_tiny", data={"path": "photos"}, run={"dir": "r"})`.

A config is a file or one of `d2v configs`. Settings are nested dictionaries, or {"data.path": ...} with two stars.
ValueError: whatever a command says in a line. Random numbers of Python, numpy and torch are seeded by a run.
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2v.config.written import in_home


def pretrain(config: str | Path, **settings: Any) -> Path:
    """Trains an encoder, as scripts/pretrain.py; the folder that `from_pretrained` loads."""
    return _call("pretrain", str(config), *arguments(settings))


def finetune(config: str | Path, model: str | Path = "", **settings: Any) -> dict[str, dict[str, float]]:
    """Learns labels, as scripts/finetune.py; the scores by split.

    `model`: where the encoder is; empty: training is from scratch.
    """
    return _call("finetune", str(config), *([f"model={_path(model, 'model')}"] if model else []), *arguments(settings))


def predict(
    model: str | Path, out: str | Path, *, probabilities: bool = False, columns: Sequence[str] = (), **settings: Any
) -> Path:
    """Writes what a fine-tuned model says of data without labels, as scripts/predict.py; the table's path.

    `columns`: names of those of the data that go into the table.
    """
    options = [f"out={out}", f"probabilities={str(probabilities).lower()}", f"columns={','.join(columns)}"]
    _call("predict", _path(model, "model"), *options, *arguments(settings))
    return Path(in_home(str(out)))


def evaluate(config: str | Path, model: str | Path | list[str | Path], **settings: Any) -> dict[str, Any]:
    """Scores an encoder, or several, beside random inits, as scripts/evaluate.py; what its JSON file holds."""
    models = [_path(one, "model") for one in (model if isinstance(model, list | tuple) else [model])]
    return _call("evaluate", str(config), f"model={','.join(models)}", *arguments(settings))


def embed(config: str | Path, model: str | Path, out: str | Path, **settings: Any) -> Path:
    """Writes features, as scripts/embed.py; the table's path."""
    _call("embed", str(config), f"model={_path(model, 'model')}", f"out={out}", *arguments(settings))
    return Path(in_home(str(out)))


def convert(source: str | Path, target: str | Path, *, modality: str = "", overwrite: bool = False) -> Path:
    """Converts a model, as scripts/convert.py; the target.

    `modality`: which one to take out of a model of several.
    """
    options = [*([f"modality={modality}"] if modality else []), *(["run.overwrite=true"] if overwrite else [])]
    _call("convert", _path(source, "source"), str(target), *options)
    return Path(in_home(str(target)))


def arguments(settings: dict[str, Any], where: str = "") -> list[str]:
    """Nested settings as `key=value`. ValueError: a value that a YAML file could not hold, or None."""
    found = []
    for name, value in settings.items():
        key = f"{where}{name}"
        if isinstance(value, dict) and value:
            found += arguments(value, f"{key}.")
        elif isinstance(value, str | Path):
            found.append(f"{key}={value}")
        elif value is None:  # the name of a folder, say, would be null
            raise ValueError(f"{key} is None: leave it out, or write 'null' where that is a value of the setting")
        else:
            try:
                found.append(f"{key}={json.dumps(value, default=_plain)}")
            except TypeError:
                raise ValueError(f"{key} is {value!r}; it may be a number, a string, a list or a dictionary") from None
    return found


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy, and paths in lists, as JSON has them. TypeError: it is something else."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError


def _path(value: Any, what: str) -> str:
    """Where a model is. ValueError: it is something else."""
    if not isinstance(value, str | Path):
        raise ValueError(f"{what} is a {type(value).__name__}; it must be the path of a folder, or a name on the Hub")
    return str(value)


def _call(name: str, *given: str) -> Any:
    """A script's main; imported now, since most programs that import d2v run none."""
    return importlib.import_module(f"d2v.scripts.{name}").main(list(given))
