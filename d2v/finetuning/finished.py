"""A model that `d2v finetune` has written, with the settings under which it reads other data than it learnt from."""

from pathlib import Path
from typing import Any, NamedTuple

from d2v.finetuning.config import FinetuneConfig, load
from d2v.interop.pretrained import load_ours
from d2v.models.task_models import TaskModel
from d2v.protocols import Unlabelled
from d2v.training.inherited import Origin, take_data
from d2v.training.preparation import preparation_of
from d2v.training.weights import checkpoint_of, folder_of_model

SETTINGS = "finetuning.yaml"  # those of the run, which an export holds
# Of the data that was learnt from; what is read now may have no such parts.
OF_TRAINING = {"split": "train", "validation_split": "", "validation_share": "0", "test_split": ""}


class Finished(NamedTuple):
    """A task model, and how samples are read for it."""

    model: TaskModel
    config: FinetuneConfig
    reading: Unlabelled
    folder: Path  # where its tokenizer is, if it needs one


def open_finished(path: str, overrides: list[str]) -> Finished:
    """What a run's folder or its export holds, for the data that `data.path=` of `overrides` names.

    ValueError: no fine-tuned model there; no data; a setting that predictions do not read.
    """
    place = folder_of_model(Path(path))
    file = place / SETTINGS
    if not file.is_file():
        raise ValueError(
            f"{path} is no model of `d2v finetune`: there is no {file}; give a run's folder or its export/"
            f"{checkpoint_of(place)}"
        )
    names = [override.partition("=")[0] for override in overrides]
    _check(names, ["data", "run.overwrite"], "data.* and run.overwrite")
    if not {"data", "data.path"} & set(names):
        raise ValueError("data.path=FOLDER is missing: what is to be predicted for")
    former = [f"data.{name}={value}" for name, value in OF_TRAINING.items()]
    config, task = load([str(file), *former, *overrides])
    if task.unlabelled is None:
        raise ValueError(f"{path} learnt from data of {config.modality} that is not read without labels")
    read = [f"data.{name}" for name in task.unlabelled.settings]
    _check([name for name in names if name.startswith("data.")], read, ", ".join(read))
    take_data(config, Origin("MODEL", path), lambda line: None)
    model: Any = load_ours(place)
    if not isinstance(model, task.model):
        raise ValueError(f"{place} holds a {type(model).__name__}; {SETTINGS} there is of a {task.model.__name__}")
    name = config.modality
    config.model.frontends[name] = type(config.frontend)(**model.config.frontends[name])
    return Finished(model, config, task.unlabelled, preparation_of(Path(path), name))


def _check(names: list[str], read: list[str], said: str) -> None:
    """ValueError: a name of a setting that is none of those that are read, and not of such a section."""
    for name in names:
        if not any(f"{name}.".startswith(f"{one}.") for one in read):
            raise ValueError(f"{name} has no effect on predictions: they read {said}")
