"""`train.init_from`: a run that starts with weights that were trained before, all of them or none."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModel

from d2v import plugins
from d2v.config.schema import Config
from d2v.interop.fairseq import load_fairseq
from d2v.interop.fidelity import FREE
from d2v.interop.pretrained import load_whole
from d2v.models.encoder import D2vModel
from d2v.objectives.common.objective import Objective

ENCODERS = ("student.encoder.", "teacher.encoder.")  # how the names of their weights begin


class Weights(NamedTuple):
    """What a place holds: an encoder, tensors by an objective's names, and the objective if there is one."""

    encoder: D2vModel
    state: dict[str, Tensor]
    objective: Objective | None


def start_from(objective: Objective, path: str | Path, config: Config) -> list[str]:
    """Fills student and teacher from an export, a run folder, or a fairseq checkpoint.

    Says what came and what starts anew. An export gives both the same weights; a checkpoint of the same method gives
    the teacher its own and brings the predictor or decoder. ValueError: no such file, another architecture, or the
    first weight that is missing, left over or of another shape; nothing is half loaded.
    """
    path = Path(path)
    source = read_weights(path)
    _check_architecture(source.encoder, config, path)
    heads = {name for name in objective.state_dict() if not name.startswith(ENCODERS)}
    brought = heads if _brings_heads(source, objective, heads) else set()
    state = {name: value for name, value in source.state.items() if name.startswith(ENCODERS) or name in brought}
    _check_weights(objective, state, heads, path)
    weights = objective.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            weights[name].copy_(value)
    return [
        f"starts from {path}: {', '.join(['student', 'teacher', *_parts(brought)])}",
        f"starts anew: {', '.join([*_parts(heads - brought), 'optimizer, step, learning rate and EMA decay'])}",
    ]


def _parts(names: set[str]) -> list[str]:
    """The parts of an objective that weights lie in, sorted."""
    return sorted({name.partition(".")[0] for name in names})


def _brings_heads(source: Weights, objective: Objective, heads: set[str]) -> bool:
    """Whether all of the objective's heads are there, from the same method with the same decoder."""
    if type(source.objective) is not type(objective):
        return False
    decoders = [vars(one.config).get("decoder") for one in (source.objective, objective)]
    if decoders[0] != decoders[1] or not heads <= source.state.keys():
        return False
    weights = objective.state_dict()
    return all(source.state[name].shape == weights[name].shape for name in heads)


def bring_preparation(config: Any, folder: Path) -> None:
    """Weights of train.init_from are of what was prepared with them (tokens): fills such settings of data.

    ValueError: they cannot be had.
    """
    if config.train.init_from:
        saved = folder / "config.yaml"
        former = OmegaConf.to_container(OmegaConf.load(saved).data) if saved.is_file() else None
        plugins.load("d2v.modalities", config.modality).inherit(config.data, Path(config.train.init_from), former)


def read_weights(path: Path, setting: str = "train.init_from") -> Weights:
    """The weights of an export, a run folder or a fairseq checkpoint.

    ValueError: they cannot be had; the message begins with `setting`.
    """
    folder = path / "export" if (path / "export" / "config.json").is_file() else path
    if (folder / "config.json").is_file():
        try:
            encoder = load_whole(AutoModel, folder, lambda name: name.startswith("head."), local_files_only=True)
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from None
        if not isinstance(encoder, D2vModel):
            raise ValueError(f"{setting}: {folder} holds a {type(encoder).__name__}, not a d2v encoder")
        weights = encoder.state_dict()
        state = {}
        for prefix in ENCODERS:
            state |= {f"{prefix}{name}": value for name, value in weights.items()}
        return Weights(encoder, state, None)
    if path.is_file():
        objective = load_fairseq(path)
        encoder = objective.student["encoder"]
        assert isinstance(encoder, D2vModel)
        return Weights(encoder, objective.state_dict(), objective)
    raise ValueError(f"{setting} is {path}: no export or run folder (with config.json) and no checkpoint file")


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
