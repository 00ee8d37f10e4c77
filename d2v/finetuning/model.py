"""The task model of a run: the encoder that it starts from, and a new head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2v.finetuning.config import FinetuneConfig
from d2v.interop.pretrained import load_ours, read_config
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.task_models import TaskModel
from d2v.training import init_from
from d2v.training.setup import checkpoint_activations
from d2v.training.weights import folder_of_model

OF_WEIGHTS = ("pooling", "activation", "blank")  # settings of a task that the weights of its head were trained with


def adopt(config: FinetuneConfig, folder: Path, say: Callable[[str], None]) -> D2vModel | None:
    """The encoder to start from, whose architecture becomes the config's; its rates of dropout stay the config's.

    None: from scratch, or resuming. ValueError: as init_from.adopt.
    """
    source = config.train.init_from
    weights = init_from.adopt(config, source, folder, say, setting="model", resizable=True) if source else None
    return None if weights is None else weights.encoder


def build_model(
    config: FinetuneConfig, model_class: type[TaskModel], head: dict[str, Any], encoder: D2vModel | None
) -> TaskModel:
    """A task model with a new head, its encoder as it was initialised or that of `encoder`."""
    model_config = D2vConfig(frontends=config.model.frontends, trunk=config.model.trunk, task=config.task, **head)
    model = model_class(model_config)
    checkpoint_activations(model.encoder, config.train.checkpoint_activations)
    if encoder is not None:
        names = set(model.encoder.state_dict())  # all but a final norm
        weights = {name: value for name, value in encoder.state_dict().items() if name in names}
        model.encoder.load_state_dict(weights)
    return model


def bring_head(model: TaskModel, source: str, say: Callable[[str], None]) -> None:
    """Fills the head of `model` with that of the fine-tuned model at `source`, if it is for the same names.

    Those are classes or letters; what predicts numbers has none. Says which head it is.
    """
    folder, kind = folder_of_model(Path(source)), type(model)
    if not (folder / "config.json").is_file() or model.config.problem_type == "regression":
        return
    if read_config(folder).architectures != [kind.__name__]:
        return
    other = load_ours(folder)
    if other.config.id2label != model.config.id2label:
        say(f"a new head: that of {source} is for {other.config.num_labels} other names")
    elif _weights_of(other) != _weights_of(model):
        say(f"a new head: that of {source} has other settings (task.*)")
    else:
        model.get_submodule("head").load_state_dict(other.head.state_dict())
        say(f"the head of {source}, which is for the same names")


def _weights_of(model: TaskModel) -> dict[str, Any]:
    """The settings of a head without which its weights mean something else."""
    settings = {name: value for name, value in vars(model.task).items() if name in OF_WEIGHTS}
    return {name: list(value.shape) for name, value in model.get_submodule("head").state_dict().items()} | settings
