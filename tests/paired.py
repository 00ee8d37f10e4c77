"""Small models and data of two modalities side by side, for tests of pairs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import colours
import small
import torch

from d2v import plugins
from d2v.modalities.common import pairs
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives.common.pairing import Pairing
from d2v.types import View

FRONTENDS = {**small.FRONTENDS, "text": {"max_positions": 16, "init_std": 0.3}}
SIDES = {
    "image": {"flip": 0.0, "color_jitter": 0.0, "crop_scale": [0.8, 1.0]},
    "speech": {},
    "text": {"block_size": 16, "vocab_size": 280},
}


def encoder(*modalities: str, **trunk) -> D2vModel:
    """One block, the same whenever it is made."""
    settings = {"depth": 1, "dim": small.DIM, "num_heads": 2, "mlp_dim": 32, "init_std": 0.2, **trunk}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return D2vModel(D2vConfig({name: small.FRONTENDS[name] for name in modalities}, settings))


def objective(name: str, *modalities: str, **settings) -> Pairing:
    """In training mode, the same whenever it is made."""
    module = plugins.load("d2v.objectives.paired", name)
    made = encoder(*(modalities or ("image", "text")))
    torch.manual_seed(2)
    return module.build(made, module.Config(**{"projection_dim": 8, **settings})).train()


def noise(samples: int = 6, labels: Sequence[int] | None = None, seed: int = 0) -> list[View]:
    """Views of noise of an image and a text for each sample."""
    numbers = None if labels is None else torch.tensor(labels)
    return [small.view(name, samples, seed)._replace(labels=numbers, indices=None) for name in ("image", "text")]


def some(views: list[View], rows: slice) -> list[View]:
    """Rows of views."""
    return [
        View(
            view.modality,
            {name: value[rows] for name, value in view.inputs.items()},
            None if view.padding is None else view.padding[rows],
            labels=None if view.labels is None else view.labels[rows],
        )
        for view in views
    ]


def world(folder: Path, count: int = 3, more: Sequence[str] = ()) -> Path:
    """table.csv with the columns image, audio, text and label, a row of each colour `count` times, and `more` lines."""
    return colours.write_world(folder, count, side=16, least=2000, noun="one", more=more)


def config(modalities: Sequence[str], sides: dict[str, dict[str, Any]] | None = None, **settings) -> pairs.PairConfig:
    """The section data of a part that pairs two modalities."""
    kind = pairs.data_config({name: plugins.load("d2v.modalities", name) for name in modalities})
    made = {}
    for one in dataclasses.fields(kind):
        if one.name in modalities:
            made[one.name] = one.default_factory()  # type: ignore[misc]
            for name, value in {**SIDES[one.name], **((sides or {}).get(one.name, {}))}.items():
                assert name in vars(made[one.name])
                setattr(made[one.name], name, value)
    return kind(**settings, **made)


def opened(data: pairs.PairConfig, folder: Path, split: str = "train") -> tuple[pairs.Samples, dict[str, Any]]:
    """Its samples, and frontends as they became; the tokenizer is in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    frontends = {name: module.FrontendConfig(**FRONTENDS[name]) for name, module in data.modules.items()}
    for name, frontend in frontends.items():
        pairs.prepare(data, name, frontend, folder, 0)
    return pairs.Samples(data, frontends, split=split, folder=folder), frontends
