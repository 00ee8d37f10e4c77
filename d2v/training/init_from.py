"""`train.init_from`: a run that starts with weights that were trained before, all of them or none."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from transformers import AutoModel

from d2v import plugins
from d2v.config.schema import Config
from d2v.interop.fairseq import load_fairseq
from d2v.interop.fidelity import FREE
from d2v.interop.pretrained import load_whole
from d2v.models.encoder import D2vModel
from d2v.objectives.common.objective import Objective


def start_from(objective: Objective, path: str | Path, config: Config) -> list[str]:
    """Fills student and teacher from an export, a run folder, or a fairseq checkpoint, and says what came and what starts anew.

    An export gives both the same weights; a checkpoint of the same method gives the teacher its own and brings the predictor or decoder.
    ValueError: no such file, another architecture, or the first weight that is missing, left over or of another shape; nothing is half loaded.
    """
    path = Path(path)
    encoder, state, source = read(path)
    _compare(encoder, config, path)
    own = objective.state_dict()
    heads = {name for name in own if not name.startswith(("student.encoder.", "teacher.encoder."))}
    brought = heads & set(state)
    same = type(source) is type(objective) and getattr(source.config, "decoder", None) == getattr(
        objective.config, "decoder", None
    )
    if not same or brought != heads or any(state[name].shape != own[name].shape for name in heads):
        brought = set()  # another method's, or none
    _fill(
        objective,
        {
            name: state[name]
            for name in state
            if name.startswith(("student.encoder.", "teacher.encoder.")) or name in brought
        },
        heads,
        path,
    )
    anew = sorted({name.partition(".")[0] for name in heads - brought})
    kept = sorted({name.partition(".")[0] for name in brought})
    return [
        f"starts from {path}: {', '.join(['student', 'teacher', *kept])}",
        f"starts anew: {', '.join([*anew, 'optimizer, step, learning rate and EMA decay'])}",
    ]


def bring_preparation(config: Any, folder: Path) -> None:
    """Weights of train.init_from are of what was prepared with them (tokens): fills such settings of data.

    ValueError: they cannot be had.
    """
    if config.train.init_from:
        saved = folder / "config.yaml"
        former = OmegaConf.to_container(OmegaConf.load(saved).data) if saved.is_file() else None
        plugins.load("d2v.modalities", config.modality).inherit(config.data, Path(config.train.init_from), former)


def read(path: Path, said: str = "train.init_from") -> tuple[D2vModel, dict[str, Tensor], Any]:
    """The encoder of `path`, tensors by an objective's names, and the objective if it has one. ValueError: it cannot be had; begins with `said`."""
    folder = path / "export" if (path / "export" / "config.json").is_file() else path
    if (folder / "config.json").is_file():
        try:
            encoder = load_whole(AutoModel, folder, local_files_only=True)
        except ValueError as error:
            raise ValueError(f"{said}: {error}") from None
        if not isinstance(encoder, D2vModel):
            raise ValueError(f"{said}: {folder} holds a {type(encoder).__name__}, not a d2v encoder")
        weights = encoder.state_dict()
        return (
            encoder,
            {f"{side}.encoder.{name}": value for side in ("student", "teacher") for name, value in weights.items()},
            None,
        )
    if path.is_file():
        source = load_fairseq(path)
        encoder = source.student["encoder"]
        assert isinstance(encoder, D2vModel)
        return encoder, source.state_dict(), source
    raise ValueError(f"{said} is {path}: no export or run folder (with config.json) and no checkpoint file")


def _compare(encoder: D2vModel, config: Config, path: Path) -> None:
    """ValueError: a setting under which the same weights would compute something else."""
    name = config.modality
    theirs = {"trunk": encoder.config.trunk, f"frontends.{name}": encoder.config.frontends.get(name)}
    if theirs[f"frontends.{name}"] is None:
        raise ValueError(
            f"train.init_from: {path} reads {', '.join(encoder.config.frontends)}, this config trains {name}"
        )
    ours = {"trunk": vars(config.model.trunk), f"frontends.{name}": vars(config.frontend)}
    for part, fields in ours.items():
        for field, value in fields.items():
            if any(word in field for word in FREE) or field not in theirs[part] or theirs[part][field] == value:
                continue
            raise ValueError(
                f"model.{part}.{field} is {value}; {path}, which train.init_from names, was trained with {theirs[part][field]}"
            )


@torch.no_grad()
def _fill(objective: nn.Module, state: dict[str, Tensor], optional: set[str], path: Path) -> None:
    own = objective.state_dict()
    missing, extra = sorted(own.keys() - state.keys() - optional), sorted(state.keys() - own.keys())
    if missing:
        raise ValueError(f"train.init_from: {path} has no weight {missing[0]} ({len(missing)} are missing)")
    if extra:
        raise ValueError(
            f"train.init_from: {path} has a weight {extra[0]} that this model does not have ({len(extra)} are left over)"
        )
    wrong = [name for name in sorted(state) if state[name].shape != own[name].shape]
    if wrong:
        shapes = f"{tuple(state[wrong[0]].shape)}, this model {tuple(own[wrong[0]].shape)}"
        raise ValueError(f"train.init_from: {wrong[0]} of {path} has shape {shapes}")
    for name, value in state.items():
        own[name].copy_(value)
