"""The task model of a run: the encoder that it starts from, and a new head."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from d2v.finetuning.config import FinetuneConfig
from d2v.interop.fidelity import FREE
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.task_models import TaskModel
from d2v.training.checkpoint import checkpoints_in
from d2v.training.init_from import read_weights
from d2v.training.setup import checkpoint_activations


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
