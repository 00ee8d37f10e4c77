"""`train.init_from`: a run that starts with weights that were trained before, all of them or none."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2v.config.schema import Config, OneModality
from d2v.interop.fidelity import FREE
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.objectives.common.objective import Objective
from d2v.training.inherited import Origin, Say, former_run, resized, resumes, take_architecture, take_data
from d2v.training.weights import ENCODERS, STUDENT, Weights, read_weights


def adopt(config: OneModality, path: str, folder: Path, say: Say, *, setting: str, resizable: bool) -> Weights | None:
    """What a run starts from, whose architecture becomes the config's; see d2v/training/inherited.py.

    `resizable`: the command line may give another size of its inputs. None: the run in `folder` is resumed. ValueError:
    it cannot be had, reads another modality, or the command line gives another architecture.
    """
    origin, weights = Origin(setting, path), None
    model: Any
    if resumes(folder):  # it has its own copy, and what it started from may be gone
        former = former_run(folder)
        assert former is not None
        model = D2vConfig(former["model"]["frontends"], former["model"]["trunk"])
    else:
        weights = read_weights(Path(path), setting)
        model = weights.encoder.config
    name = config.modality
    if name not in model.frontends:
        purpose = "this script fine-tunes" if resizable else "this config trains"
        raise ValueError(f"{origin} reads {', '.join(model.frontends)}; {purpose} {name}")
    sizes = take_architecture(config, model, origin, say, resumed=weights is None, resizable=resizable)
    if weights is None:
        return None
    own = weights.of(name)
    return own._replace(encoder=resized(own.encoder, name, sizes, origin, say))


def start_from(objective: Objective, path: str | Path, config: Config, source: Weights | None = None) -> list[str]:
    """Fills student and teacher from what d2v/training/weights.py reads; `source`: it is read already.

    Says what came and what starts anew. An export gives both the same weights; a checkpoint of the same method gives
    the teacher its own and brings the predictor or decoder. ValueError: no such file, another architecture, or the
    first weight that is missing, left over or of another shape; nothing is half loaded.
    """
    path = Path(path)
    source = read_weights(path) if source is None else source
    _check_architecture(source.encoder, config, path)
    source = source.of(config.modality)
    heads = {name for name in objective.state_dict() if not name.startswith(ENCODERS)}
    brought = heads if _brings_heads(source, objective, config.objective, heads) else set()
    sides = ENCODERS if len(objective.teacher) else (STUDENT,)
    state = {name: value for name, value in source.state.items() if name.startswith(sides) or name in brought}
    _check_weights(objective, state, heads, path)
    weights = objective.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            weights[name].copy_(value)
    return [
        f"starts from {path}: {', '.join([*(side.partition('.')[0] for side in sides), *_parts(brought)])}",
        f"starts anew: {', '.join([*_parts(heads - brought), 'optimizer, step, learning rate and EMA decay'])}",
    ]


def _parts(names: set[str]) -> list[str]:
    """The parts of an objective, beside its encoders, that weights lie in, sorted."""
    inner = {name.removeprefix("student.").removeprefix("teacher.") for name in names}
    return sorted({name.partition(".")[0] for name in inner})


def _brings_heads(source: Weights, objective: Objective, settings: Any, heads: set[str]) -> bool:
    """Whether all of the objective's heads are there, from the same method with the same decoder."""
    if source.objective is None or source.objective.name != settings.name:
        return False
    decoders = [vars(one).get("decoder") for one in (source.objective, settings)]
    if decoders[0] != decoders[1] or not heads <= source.state.keys():
        return False
    weights = objective.state_dict()
    return all(source.state[name].shape == weights[name].shape for name in heads)


def bring_preparation(config: OneModality, folder: Path, say: Say = print, setting: str = "train.init_from") -> None:
    """Weights of train.init_from are of what they were fed by: see take_data. ValueError: as there."""
    source = config.train.init_from  # type: ignore[attr-defined]
    if source:
        former = former_run(folder)
        take_data(config, Origin(setting, source), say, None if former is None else former["data"])


def _check_architecture(encoder: D2vModel, config: Config, path: Path) -> None:
    """ValueError: a setting under which the same weights would compute something else."""
    name = config.modality
    if encoder.config.frontends.get(name) is None:
        raise ValueError(
            f"train.init_from: {path} reads {', '.join(encoder.config.frontends)}, this config trains {name}"
        )
    _check_part(vars(config.model.trunk), encoder.config.trunk, "trunk", path)
    _check_part(vars(config.frontend), encoder.config.frontends[name], f"frontends.{name}", path)


def _check_part(settings: dict[str, Any], trained: dict[str, Any], part: str, path: Path) -> None:
    for field, value in settings.items():
        if any(word in field for word in FREE) or field not in trained or trained[field] == value:
            continue
        raise ValueError(
            f"model.{part}.{field} is {value}; {path}, which train.init_from names, was trained with {trained[field]}"
        )


def _check_weights(objective: Objective, state: dict[str, Tensor], optional: set[str], path: Path) -> None:
    """ValueError: `state` does not fit; `optional` weights of the objective may be missing from it."""
    weights = objective.state_dict()
    missing = sorted(weights.keys() - state.keys() - optional)
    if missing:
        raise ValueError(f"train.init_from: {path} has no weight {missing[0]} ({len(missing)} are missing)")
    extra = sorted(state.keys() - weights.keys())
    if extra:
        raise ValueError(
            f"train.init_from: {path} has a weight {extra[0]} that this model does not have "
            f"({len(extra)} are left over)"
        )
    for name in sorted(state):
        if state[name].shape != weights[name].shape:
            shapes = f"{tuple(state[name].shape)}, this model {tuple(weights[name].shape)}"
            raise ValueError(f"train.init_from: {name} of {path} has shape {shapes}")
