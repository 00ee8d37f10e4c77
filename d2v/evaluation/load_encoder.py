"""An encoder from a run, a folder or the Hub, ours or a stock one, with the data as it was fed."""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from d2v import plugins
from d2v.config.given import COMMAND_LINE
from d2v.config.loading import from_dict
from d2v.config.schema import Config
from d2v.interop.fidelity import QUIRKS, RESIZED
from d2v.interop.pretrained import load_whole, read_config
from d2v.models.alignment import D2vForAlignment
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel, key_of, with_frontend
from d2v.models.slices import one_modality
from d2v.training.inherited import Origin, Say, resized, take_architecture, take_data
from d2v.training.preparation import preparation_of
from d2v.training.weights import checkpoint_of, folder_of_model, home, is_checkpoint, read_encoder, read_weights


class Opened(NamedTuple):
    """An encoder, and how samples are read for it."""

    encoder: D2vModel
    data: Any  # the modality's settings
    frontend: Any  # its FrontendConfig
    folder: Path  # where its tokenizer is, if it needs one


def open_model(config: Config, path: str, say: Say, *, quirks: bool = True) -> Opened:
    """What `model=path` names, for this config's data: see d2v/training/inherited.py.

    `quirks`: see open_encoder. ValueError: as there; another value of what the model brings was given.
    """
    own = copy.deepcopy(config)  # another model may have been fed otherwise
    origin, name = Origin("model", path), config.modality
    encoder = open_encoder(path, name, quirks=quirks)
    sizes = take_architecture(own, encoder.config, origin, say, resizable=True)
    encoder = resized(encoder, name, sizes, origin, say)
    take_data(own, origin, say)
    frontend = plugins.load("d2v.modalities", name).FrontendConfig(**encoder.config.frontends[name])
    return Opened(encoder, own.data, frontend, preparation_of(home(Path(path)), name))


def open_alone(path: str, modality: str, data: dict, frontend: dict) -> Opened:
    """What `model=path` names, as it reads a modality by its own settings, without a config of the user's.

    `data`, `frontend`: settings that a table of features was made with; of `frontend` the sizes count, since images may
    have been read at another than the model's. ValueError: as open_model.
    """
    sizes = {name: value for name, value in frontend.items() if name in RESIZED}
    values = {"model": {"frontends": {modality: sizes}}, "data": data}
    config = from_dict(values, path, ours=False)
    config.given = {f"model.frontends.{modality}.{name}": COMMAND_LINE for name in sizes}
    return open_model(config, path, lambda line: None, quirks=False)


def open_alignment(path: str) -> D2vForAlignment | None:
    """The model that `model=path` names, whole, if it is one that aligns modalities; else None.

    ValueError: it cannot be read.
    """
    place = folder_of_model(Path(path))
    if is_checkpoint(place) or D2vForAlignment.__name__ not in (read_config(place).architectures or []):
        return None
    return load_whole(D2vForAlignment, place).eval()


def projection_of(model: D2vForAlignment | None, modality: str) -> torch.nn.Module | None:
    """The layer from the mean of a sample's tokens to the space of the model; None: there is none of that modality."""
    layers = {} if model is None else dict(model.projections.items())
    return layers.get(key_of(modality))


def open_encoder(path: str, modality: str, *, quirks: bool = True) -> D2vModel:
    """The encoder of `model=path`, which must read `modality`, and is that of it alone; of a checkpoint the teacher.

    Of a task model without its head; a stock one of transformers becomes ours. `quirks` false: without those of the
    reference's that make a sample's features depend on the padding beside it. ValueError: no whole model there, or it
    reads another modality.
    """
    place = folder_of_model(Path(path))
    if place.exists() and not is_checkpoint(place) and not (place / "config.json").is_file():
        raise ValueError(
            f"model={path} is no folder with a config.json; give a run's export/ folder{checkpoint_of(place)}"
        )
    try:
        if is_checkpoint(place):
            encoder = read_weights(place, "model").encoder
        else:
            source = str(place) if place.exists() else path  # a name on the Hub
            config = read_config(source)
            _check_modality(config, modality)
            encoder = read_encoder(source, config)
        _check_modality(encoder.config, modality)
        encoder = one_modality(encoder, modality)
    except ValueError as error:
        raise ValueError(f"model={path}: {error}") from None
    known = {field.name for field in fields(plugins.load("d2v.modalities", modality).FrontendConfig)}
    quirky = {name: False for name in QUIRKS & known if encoder.config.frontends[modality].get(name)}
    return encoder if quirks or not quirky else with_frontend(encoder, modality, quirky)


def _check_modality(config: PreTrainedConfig, modality: str) -> None:
    """ValueError: one of our models that reads another modality."""
    if isinstance(config, D2vConfig) and config.frontends and modality not in config.frontends:
        raise ValueError(f"reads {', '.join(config.frontends)}, but the config is for {modality}")
