"""One modality out of an encoder of several, and encoders of one into the parts of one of several."""

import copy
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from d2v.models.encoder import D2vModel
from d2v.models.own import own_layers, plain_name


def one_modality(encoder: D2vModel, modality: str) -> D2vModel:
    """The encoder with the frontend of a modality alone, whose own layers become its trunk's: equal outputs.

    Itself where it reads no other. ValueError: it does not read this one.
    """
    encoder.frontend(modality)
    if len(encoder.config.frontends) == 1:
        return encoder
    config = copy.deepcopy(encoder.config)
    config.frontends = {modality: config.frontends[modality]}
    config.trunk = asdict(encoder.trunk.config.shared)
    with torch.random.fork_rng(devices=[]):  # a run in progress would miss the numbers that building draws
        one = D2vModel(config)
    one.load_state_dict(of_modality(encoder, encoder.state_dict(), modality))
    return one.to(device=encoder.device, dtype=encoder.dtype).train(encoder.training)


def of_modality(encoder: D2vModel, state: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """What `one_modality` keeps of a state of `encoder`, by the names that it has there."""
    key, own, found = _keys(encoder)[modality], own_layers(encoder), {}
    for name, value in state.items():
        plain, whose = plain_name(name, own)
        if name.startswith("frontends."):
            whose = name.split(".")[1]
        if whose in ("", key):
            found[plain] = value
    return found


def fill_trunk(encoder: D2vModel, trunks: Mapping[str, Mapping[str, Tensor]], shared: str) -> None:
    """Fills a trunk with states of trunks in which nothing is any modality's own, by modality.

    What is a modality's own is of its trunk, the rest, and the own part of modalities that have none, of `shared`'s.
    """
    modality_of = {key: name for name, key in _keys(encoder).items()}
    own, state = own_layers(encoder.trunk), {}
    for name in encoder.trunk.state_dict():
        plain, whose = plain_name(name, own)
        state[name] = trunks[modality_of[whose] if modality_of.get(whose) in trunks else shared][plain]
    encoder.trunk.load_state_dict(state)


def _keys(encoder: D2vModel) -> dict[str, str]:
    """How state dicts name each modality."""
    return dict(zip(encoder.config.frontends, encoder.frontends, strict=True))
