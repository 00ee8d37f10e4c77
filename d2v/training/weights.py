"""What `model=` and `train.init_from=` name, opened.

An export, a run's folder or one of its checkpoints, a folder of transformers, a fairseq checkpoint.
"""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig

from d2v.config.bases import read_yaml
from d2v.config.loading import from_dict
from d2v.interop.fairseq import load_fairseq
from d2v.interop.huggingface import from_transformers
from d2v.interop.pretrained import load_whole, read_config
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.slices import of_modality, one_modality
from d2v.training.checkpoint import MANIFEST, WEIGHTS, checkpoints_in, damage, read_model
from d2v.training.run_folder import CONFIG, EXPORT
from d2v.training.shards import shard_files

JOINT = "joint"  # the method of runs of several modalities
STUDENT, TEACHER = ENCODERS = ("student.encoder.", "teacher.encoder.")  # how the names of their weights begin


class Weights(NamedTuple):
    """What a place holds: an encoder, tensors by an objective's names, and its settings if there is an objective."""

    encoder: D2vModel
    state: dict[str, Tensor]
    objective: Any

    def of(self, modality: str) -> "Weights":
        """Those of one modality alone. ValueError: the encoder does not read it."""
        state = {name: value for name, value in self.state.items() if not name.startswith(ENCODERS)}
        for side in ENCODERS:
            whole = {name.removeprefix(side): value for name, value in self.state.items() if name.startswith(side)}
            own = of_modality(self.encoder, whole, modality)
            state |= {f"{side}{name}": value for name, value in own.items()}
        return Weights(one_modality(self.encoder, modality), state, self.objective)


def read_weights(path: Path, setting: str = "train.init_from") -> Weights:
    """The weights of a place. ValueError: they cannot be had; the message begins with `setting`."""
    try:
        if is_checkpoint(path):
            return _of_checkpoint(path)
        folder = folder_of_model(path)
        if (folder / "config.json").is_file():
            return _twice(read_encoder(folder, read_config(folder)))
        if path.is_file():
            objective = load_fairseq(path)
            encoder = objective.student["encoder"]
            assert isinstance(encoder, D2vModel)
            return Weights(encoder, objective.state_dict(), objective.config)
        hint = checkpoint_of(path)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
    raise ValueError(f"{setting} is {path}: no export or run folder (with config.json) and no checkpoint file{hint}")


def read_encoder(source: str | Path, config: PreTrainedConfig) -> D2vModel:
    """The encoder of a folder or Hub name with this config, of a task model without its head.

    A stock one of transformers becomes ours. ValueError: no whole model there, or none that can become one of ours.
    """
    if not isinstance(config, D2vConfig):
        encoder = from_transformers(source).base_model  # itself where it has no head
        assert isinstance(encoder, D2vModel)
        return encoder
    if not config.frontends:
        raise ValueError("no encoder of d2v: its config.json names no frontends")
    return load_whole(D2vModel, source, lambda name: not name.startswith(("frontends.", "trunk.")), config=config)


def folder_of_model(path: Path) -> Path:
    """Where the config.json of a model lies: in export/ of a run's folder, or in the folder itself."""
    return path / EXPORT if (path / EXPORT / "config.json").is_file() else path


def home(path: Path) -> Path:
    """Where what belongs to weights lies, a tokenizer and what says how they were fed: of a checkpoint, its run."""
    return path.parent.parent if is_checkpoint(path) else path


def is_checkpoint(path: Path) -> bool:
    """Whether this is a checkpoint in a run's folder."""
    has_weights = (path / WEIGHTS).is_file() or bool(shard_files(path))
    return has_weights and (path / MANIFEST).is_file() and (path.parent.parent / CONFIG).is_file()


def checkpoint_of(path: Path) -> str:
    """What an error adds where a run's folder has no export yet: its last checkpoint; empty: there is none."""
    checkpoints = [one for one in checkpoints_in(path / "checkpoints") if (one / MANIFEST).is_file()]
    return f"; this run has no export yet, but a checkpoint: {checkpoints[-1]}" if checkpoints else ""


def _of_checkpoint(path: Path) -> Weights:
    """ValueError: it is damaged, or one of fine-tuning."""
    run = path.parent.parent
    values = read_yaml(run / CONFIG)
    if "objective" not in values:
        raise ValueError(f"{path} is no checkpoint of pretraining; give the run's export, {run / EXPORT}")
    fault = damage(path)
    if fault:
        raise ValueError(f"{path} is damaged: {fault}")
    objective, model = None, values["model"]
    if values["objective"].get("name") != JOINT:  # whose parts fit no run of one modality
        config = from_dict(values, str(run / CONFIG), ours=False)
        objective, model = config.objective, vars(config.model)
    state = read_model(path)
    encoder = D2vModel(D2vConfig(model["frontends"], model["trunk"])).eval()
    side = TEACHER if any(name.startswith(TEACHER) for name in state) else STUDENT
    own = {name.removeprefix(side): value for name, value in state.items() if name.startswith(side)}
    try:
        encoder.load_state_dict(own)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit {run / CONFIG}, which was changed: {reason}") from None
    return Weights(encoder, _twice(encoder).state | state, objective)


def _twice(encoder: D2vModel) -> Weights:
    """Student and teacher of the same weights."""
    state = {}
    for prefix in ENCODERS:
        state |= {f"{prefix}{name}": value for name, value in encoder.state_dict().items()}
    return Weights(encoder, state, None)
