"""`train.init_from` of a joint run: an encoder of its own for each modality; the trunk is the first one's."""

import copy
from pathlib import Path
from typing import Any

from d2v.config.joint import JointConfig
from d2v.config.schema import Config
from d2v.objectives.common.parts import BETWEEN
from d2v.objectives.joint import Joint
from d2v.training.inherited import Say
from d2v.training.init_from import adopt, bring_preparation
from d2v.training.start_many import start_many
from d2v.training.weights import Weights


def adopt_many(config: JointConfig, folder: Path, say: Say) -> dict[str, Weights]:
    """What the run starts from, by modality, whose architectures and ways of being fed become the config's.

    ValueError: one cannot be had, or was trained otherwise than the command line says.
    """
    found: dict[str, Weights] = {}
    for number, (name, path) in enumerate(config.train.init_from.items()):
        own, setting = config.reading(name), f"train.init_from.{name}"
        own.train.init_from = path
        if number:  # the trunk's settings are the first one's
            own.model.trunk = copy.deepcopy(own.model.trunk)
        weights = adopt(own, path, folder, say, setting=setting, resizable=False)
        bring_preparation(own, folder, say, setting)
        _write_back(config, name, own)
        if weights is not None:
            found[name] = weights
    return found


def _write_back(config: JointConfig, modality: str, own: Config) -> None:
    """A side of pairs is read by settings of its own, which take what the model was fed by."""
    for part, data in config.data.items():
        if BETWEEN in part and modality in part.split(BETWEEN):
            section: Any = getattr(data, modality.rpartition(".")[2])
            for name, value in vars(own.data).items():
                if name in vars(section) and name not in ("path", "split", "label"):
                    setattr(section, name, value)


def start_from_many(objective: Joint, origins: dict[str, Weights]) -> list[str]:
    """Fills student and teacher, the trunk by the first; heads start anew. Says what came from where.

    ValueError: encoders of other widths or architectures; see start_many.
    """
    said: list[str] = []
    sources = {name: weights.encoder for name, weights in origins.items()}
    for encoder in {id(one): one for one in objective.encoders}.values() if sources else ():
        said = start_many(encoder, sources, next(iter(sources)))
    return said
