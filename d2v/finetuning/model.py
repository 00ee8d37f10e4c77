"""The task model of a run: the encoder that it starts from, and a new head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from d2v.finetuning.config import FinetuneConfig
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.task_models import TaskModel
from d2v.training import init_from
from d2v.training.setup import checkpoint_activations


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
