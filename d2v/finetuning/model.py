"""The task model of a run: the encoder that it starts from, and a new head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from d2v.finetuning.config import FinetuneConfig
from d2v.interop.fidelity import FREE
from d2v.interop.pretrained import load_ours, read_config
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.task_models import TaskModel
from d2v.training.checkpoint import checkpoints_in
from d2v.training.init_from import read_weights
from d2v.training.setup import checkpoint_activations

OF_WEIGHTS = ("pooling", "activation", "blank")  # settings of a task that the weights of its head were trained with


def adopt(config: FinetuneConfig, folder: Path, say: Callable[[str], None]) -> D2vModel | None:
    """The encoder to start from, whose architecture becomes the config's; its rates of dropout stay the config's.

    None: from scratch, or resuming. ValueError: there is none at train.init_from, or it reads another modality.
    """
    name, source = config.modality, config.train.init_from
    if not source:
        return None
    saved, encoder = folder / "config.yaml", None
    if checkpoints_in(folder / "checkpoints") and saved.is_file():
        # The run that is resumed has its own copy, and what it started from may be gone.
        model = OmegaConf.to_container(OmegaConf.load(saved).model)
        assert isinstance(model, dict)
        frontends, trunk = model["frontends"], model["trunk"]
    else:
        encoder = read_weights(Path(source), "model").encoder
        frontends, trunk = encoder.config.frontends, encoder.config.trunk
    if name not in frontends:
        raise ValueError(f"model={source} reads {', '.join(frontends)}; this script fine-tunes {name}")
    changed = _take_over(config.frontend, frontends[name], f"frontends.{name}")
    changed += _take_over(config.model.trunk, trunk, "trunk")
    if changed:
        say(f"the model of {source}: {', '.join(changed)}")
    return encoder


def _take_over(settings: Any, source: dict[str, Any], where: str) -> list[str]:
    """Gives settings that shape an encoder the values of `source`, and says which ones were others."""
    changed = []
    for field, value in source.items():
        if any(word in field for word in FREE):
            continue
        before = vars(settings)[field]
        if before == value:
            continue
        changed.append(f"{where}.{field}={value} instead of {before}")
        setattr(settings, field, value)
    return changed


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
    path, kind = Path(source), type(model)
    folder = path / "export" if (path / "export" / "config.json").is_file() else path
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
