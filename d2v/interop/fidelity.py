"""Whether a written checkpoint says everything: it is read back and compared with what was written."""

from dataclasses import is_dataclass
from typing import Any

import torch

from d2v.interop.renaming import encoder_of
from d2v.objectives.common.objective import Objective

FREE = ("drop", "init", "std", "own_")  # in the name of a setting that gives no weight another meaning
RESIZED = ("image_size",)  # may be another one than at pretraining: a frontend fits its weights to it
QUIRKS = {"norm_over_padding", "reference_padding", "reference_padded_input"}  # chosen by the reader, not by the file
# give no weight another meaning; `shared`: see _copied
UNREAD = {"layer_scale", "bos_token_id", "eos_token_id", "cls_rows", "name", "shared"}


def check_same(written: Any, back: Any, unheld: tuple[str, ...] = ()) -> None:
    """ValueError: the first setting or tensor of `written` that `back` does not have.

    Settings that begin with one of `unheld` may differ.
    """
    settings, settings_back = _settings(written), _settings(back)
    for name, value in settings.items():
        if name.startswith(unheld):
            continue
        if value != settings_back[name]:
            raise ValueError(f"fairseq's format cannot hold {name}={value}: it reads back as {settings_back[name]}")
    copied, others = _copied(written), _copied(back)
    if copied != others:
        shared = f"objective.shared={list(written.config.shared)}: it reads back as {list(back.config.shared)}"
        raise ValueError(f"fairseq's format cannot hold {shared}, which differs in {sorted(copied ^ others)[0]}")
    state = back.state_dict()
    for name, value in written.state_dict().items():
        if name not in state or not torch.equal(state[name].cpu(), value.float().cpu()):
            raise ValueError(
                f"fairseq's format cannot hold {name}: "
                f"it reads back {'with other values' if name in state else 'without it'}"
            )


def _settings(objective: Any) -> dict[str, Any]:
    """Every setting by its name in a config, without those that may differ."""
    encoder, modality = encoder_of(objective)
    parts = {
        f"model.frontends.{modality}": encoder.frontends[modality].config,
        "model.trunk": encoder.trunk.config,
        "objective": objective.config,
    }
    settings: dict[str, Any] = {}
    for part, config in parts.items():
        settings |= _flat(part, config)
    return {name: value for name, value in settings.items() if counts(name)}


def _flat(prefix: str, config: Any) -> dict[str, Any]:
    """The fields of a dataclass and of those in it, lists as lists."""
    settings: dict[str, Any] = {}
    for field, value in vars(config).items():
        name = f"{prefix}.{field}"
        if is_dataclass(value):
            settings |= _flat(name, value)
        else:
            settings[name] = list(value) if isinstance(value, list | tuple) else value
    return settings


def counts(name: str) -> bool:
    """Whether a setting has to come back, by its name; those of spectrograms do nothing where the waveform is read."""
    field = name.rpartition(".")[2]
    return field not in QUIRKS | UNREAD and not field.startswith("mel_") and not any(word in field for word in FREE)


def _copied(objective: Objective) -> set[str]:
    """The student's parameters that the teacher shares, however `shared` names them."""
    return {name for name, _ in objective.student.named_parameters() if objective.is_copied(name)}
