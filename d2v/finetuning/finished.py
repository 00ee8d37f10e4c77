"""A model that `d2v finetune` has written, with the settings under which it reads other data than it learnt from."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from d2v.config.bases import read_yaml
from d2v.config.given import COMMAND_LINE
from d2v.finetuning.config import FinetuneConfig, load
from d2v.interop.pretrained import load_ours
from d2v.models.task_models import TaskModel
from d2v.protocols import Known, LabelledTask, Unlabelled
from d2v.training.checkpoint import checkpoints_in
from d2v.training.inherited import Origin, take_data
from d2v.training.preparation import preparation_of
from d2v.training.weights import folder_of_model, is_checkpoint

SETTINGS = "finetuning.yaml"  # those of the run, which an export holds
# Of the data that was learnt from; what is read now may have no such parts.
OF_TRAINING = {"split": "train", "validation_split": "", "validation_share": "0", "test_split": ""}


class Finished(NamedTuple):
    """A task model, and how samples are read for it."""

    model: TaskModel
    config: FinetuneConfig
    reading: Unlabelled
    folder: Path  # where its tokenizer is, if it needs one

    def is_typed(self, name: str) -> bool:
        """Whether the user gave a setting of the data."""
        return self.config.given.get(f"data.{name}") == COMMAND_LINE

    def known(self, split: str, rows: Any) -> Known | None:
        """Labels that a split has all the same. ValueError: they are of no use."""
        config = replace(self.config, data=replace(self.config.data, split=split))
        return self.reading.known(self.model.config, config, self.folder, rows)

    def check_labels(self, rows: Any) -> None:
        """ValueError: a column of labels that was typed is not there."""
        for name in ("label", "transcript"):
            column = getattr(self.config.data, name, "")
            if self.is_typed(name) and "boxes" not in self.reading.settings and column not in rows.column_names:
                raise ValueError(
                    f"data.{name} is {column!r}; the columns of data.path {self.config.data.path} are "
                    f"{', '.join(rows.column_names)}"
                )

    def settings(self) -> dict[str, Any]:
        """Those of the data that predictions depend on, as plain values."""
        data = asdict(self.config.data)
        return {name: data[name] for name in self.reading.settings if name not in ("max_bad_share", "split")}


def open_finished(path: str, overrides: list[str]) -> Finished:
    """What a run's folder or its export holds, for the data that `data.path=` of `overrides` names.

    ValueError: no fine-tuned model there; no data; a setting that predictions do not read.
    """
    place = folder_of_model(Path(path))
    if not (place / SETTINGS).is_file():
        raise ValueError(
            f"{path} is no model of `d2v finetune` ({place / SETTINGS} is not there): {_advice(Path(path), place)}"
        )
    config, task = _settings(place / SETTINGS, overrides)
    take_data(config, Origin("MODEL", path), lambda line: None)
    model: Any = load_ours(place)
    if not isinstance(model, task.model):
        raise ValueError(f"{place} holds a {type(model).__name__}; {SETTINGS} there is of a {task.model.__name__}")
    name = config.modality
    config.model.frontends[name] = type(config.frontend)(**model.config.frontends[name])
    assert task.unlabelled is not None
    return Finished(model, config, task.unlabelled, preparation_of(Path(path), name))


def _settings(file: Path, overrides: list[str]) -> tuple[FinetuneConfig, LabelledTask]:
    """Those of a run with what was typed about other data. ValueError: as open_finished."""
    names = [override.partition("=")[0] for override in overrides]
    if "data" in names:
        raise ValueError("data={...} is given whole: write data.path=FOLDER and the others one by one")
    _check_read(names, ["data", "run.overwrite"], "data.* and run.overwrite")
    if "data.path" not in names:
        raise ValueError("data.path=FOLDER is missing: what is to be predicted for")
    former = [f"data.{name}={value}" for name, value in OF_TRAINING.items() if f"data.{name}" not in names]
    config, task = load([str(file), *former, *overrides])
    untyped = {f"data.{name}" for name in OF_TRAINING}.difference(names)
    config.given = {name: where for name, where in config.given.items() if name not in untyped}
    if task.unlabelled is None:
        raise ValueError(f"{file.parent} learnt from data of {config.modality} that is not read without labels")
    read = [f"data.{name}" for name in task.unlabelled.settings]
    _check_read([name for name in names if name.startswith("data.")], read, ", ".join(read))
    _check_kind(read_yaml(file)["data"], config, task.unlabelled)
    return config, task


def _check_read(names: list[str], read: list[str], said: str) -> None:
    """ValueError: one of the names of settings is neither among those that predictions read nor in such a section."""
    for name in names:
        if not any(f"{name}.".startswith(f"{one}.") for one in read):
            raise ValueError(f"{name} has no effect on predictions: they read {said}")


def _advice(path: Path, place: Path) -> str:
    """What to do about a folder that is no model of fine-tuning."""
    if (place / "pretraining.yaml").is_file():
        return "it was pretrained, and predicts nothing yet: d2v finetune learns labels"
    if checkpoints_in(path / "checkpoints") or is_checkpoint(path):
        return "that run has not ended, and has no export/ yet: the command that began it goes on"
    return "give the folder of a run, or its export/"


def _check_kind(former: dict[str, Any], config: FinetuneConfig, reading: Unlabelled) -> None:
    """ValueError: a name that the model learnt with is taken away, or one that it learnt without is given."""
    for name in reading.settings:
        before, now = former.get(name), getattr(config.data, name)
        if name not in ("path", "split") and isinstance(before, str) and bool(before) != bool(now):
            raise ValueError(
                f"data.{name} is {now!r}, and the model learnt with {before!r}: it reads no other kind of data"
            )
