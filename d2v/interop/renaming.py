"""Other software's state dicts under our names and back, by prefixes of keys, and the reading of its files.

Prefixes are pairs of (their prefix, our prefix); what follows the prefix (weight, bias) stays. Where they keep query,
key and value apart and we keep one matrix, our prefix ends in `qkv.q.`, `qkv.k.` or `qkv.v.`.
"""

import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from d2v.objectives.common.objective import Objective

log = logging.getLogger(__name__)
Prefixes = list[tuple[str, str]]


class Names(NamedTuple):
    """The prefixes of one architecture."""

    student: Prefixes  # the student encoder's
    teacher: Prefixes  # the teacher encoder's, within their nested dict
    head: Prefixes  # the predictor's or the decoder's


PART = re.compile(r"(.*\.qkv)\.([qkv])\.(weight|bias)")


def renamed(state: dict[str, Tensor], prefixes: Prefixes) -> dict[str, Tensor]:
    """Our names. ValueError: the first key that has no prefix, or of q, k and v not all three."""
    ours: dict[str, Tensor] = {}
    stacks: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name = translated(key, prefixes)
        if name is None:
            raise ValueError(f"key {key!r} is not part of this architecture; is the checkpoint of another model?")
        if not isinstance(value, Tensor):
            raise ValueError(f"key {key!r} holds a {type(value).__name__}, not a tensor")
        match = PART.fullmatch(name)
        if match:
            stacks.setdefault(f"{match[1]}.{match[3]}", {})[match[2]] = value
        else:
            ours[name] = value
    for name, parts in stacks.items():
        if len(parts) != 3:
            raise ValueError(f"{name} needs q, k and v projections; the checkpoint has {', '.join(sorted(parts))}")
        if len({part.shape for part in parts.values()}) != 1:
            shapes = ", ".join(f"{part} {tuple(parts[part].shape)}" for part in "qkv")
            raise ValueError(f"{name} is made of projections of one shape; the checkpoint has {shapes}")
        ours[name] = torch.cat([parts[part] for part in "qkv"])
    return ours


def translated(key: str, prefixes: Prefixes) -> str | None:
    """The key under the name of the longest prefix that fits; None if none does."""
    fitting = [(old, new) for old, new in prefixes if key.startswith(old)]
    if not fitting:
        return None
    old, new = max(fitting, key=lambda pair: len(pair[0]))
    return new + key.removeprefix(old)


def original(state: dict[str, Tensor], prefixes: Prefixes) -> dict[str, Tensor]:
    """Their names, the inverse of `renamed`; what has no prefix is left out."""
    back = [(new, old) for old, new in prefixes]
    theirs: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = _parts(name, prefixes)
        for part, tensor in zip(parts, value.chunk(len(parts)), strict=True):
            key = translated(part, back)
            if key is not None:
                theirs[key] = tensor.clone()
    return theirs


def _parts(name: str, prefixes: Prefixes) -> list[str]:
    """A name of ours, or its three parts where they keep query, key and value apart."""
    whole, _, kind = name.rpartition(".")
    split = [f"{whole}.{part}.{kind}" for part in "qkv"]
    return split if any(f"{whole}.q." == new for _, new in prefixes) else [name]


def fill(module: nn.Module, state: dict[str, Tensor], prefixes: Prefixes, where: str) -> None:
    """Loads `state` (our names); a tensor may have dimensions of one more or fewer.

    ValueError: the first missing, misfit or left-over key.
    """
    back = [(new, old) for old, new in prefixes]
    needed = module.state_dict()
    for name, tensor in needed.items():
        theirs = translated(_parts(name, prefixes)[0], back) or name
        if name not in state:
            raise ValueError(
                f"{where} is incomplete: it has no key {theirs}, which gives {name}, {tuple(tensor.shape)}"
            )
        if state[name].squeeze().shape != tensor.squeeze().shape:
            raise ValueError(
                f"{where} has {theirs}, for {name} of shape {tuple(state[name].shape)}; "
                f"the config asks for {tuple(tensor.shape)}"
            )
    extra = sorted(state.keys() - needed.keys())
    if extra:
        raise ValueError(f"{where} has a key that the config gives no place: {translated(extra[0], back) or extra[0]}")
    module.load_state_dict({name: value.float().reshape(needed[name].shape) for name, value in state.items()})


def encoder_of(objective: Objective) -> tuple[Any, str]:
    """The student's encoder, and the one modality that it reads."""
    encoder: Any = objective.student["encoder"]
    (modality,) = encoder.config.frontends
    return encoder, modality


def fill_objective(
    objective: Objective, head: nn.Module, names: Names, state: dict[str, Tensor], teacher: dict[str, Tensor] | None
) -> None:
    """Fills student, head and teacher.

    What they do not keep in the teacher, or a whole teacher that they did not keep, is the student's. ValueError: as in
    `renamed` and `fill`; keys are checked part by part, the objective is worth nothing then.
    """
    of_head = {key: value for key, value in state.items() if translated(key, names.head) is not None}
    student = renamed({key: value for key, value in state.items() if key not in of_head}, names.student)
    fill(objective.student["encoder"], student, names.student, "model")
    fill(head, renamed(of_head, names.head), names.head, "model")
    if teacher is None:
        log.warning("the checkpoint has no teacher: it starts anew, as the student is")
        fill(objective.teacher["encoder"], student, names.student, "model")
        return
    copied = {name: value for name, value in student.items() if objective.is_copied(f"encoder.{name}")}
    fill(objective.teacher["encoder"], {**copied, **renamed(teacher, names.teacher)}, names.teacher, "_ema")


def without(state: dict[str, Any], unwanted: Callable[[str], bool], why: str) -> dict[str, Any]:
    """The other entries; says which ones were dropped."""
    dropped = [key for key in state if unwanted(key)]
    if dropped:
        log.warning("dropped from the checkpoint, %s: %s", why, ", ".join(dropped))
    return {key: value for key, value in state.items() if key not in dropped}


def read_checkpoint(path: Path) -> dict:
    """The dict of a .pt file. ValueError: no file, cut off, or holding other objects than tensors and settings."""
    if not path.is_file():
        raise ValueError(f"no checkpoint {path.absolute()}")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each have their own for a damaged or a foreign file
        raise ValueError(
            f"{path} cannot be read as plain tensors and settings: "
            f"{why_unread(error)}. A file that holds other Python objects is refused; "
            "save its 'cfg' as nested dicts and its 'model' as tensors with the software that wrote it"
        ) from None
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a checkpoint's dict")
    return loaded


def why_unread(error: Exception) -> str:
    """What is wrong with a file of weights, in a line, without torch's advice to unpickle whatever it holds."""
    foreign = re.search(r"GLOBAL (\S+)", str(error))
    if foreign:
        return f"it holds {foreign[1]}"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds something else"
    return " ".join(str(error).split())[:300]


class ReferenceSettings(dict):
    """A reference's settings, nested; one that is asked for and not there is the user's error."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"cfg.model lacks the setting {key!r}, which a model of this kind has")


def plain(config: Any) -> ReferenceSettings:
    """Nested ReferenceSettings, whatever kind of mapping they were."""
    settings = ReferenceSettings()
    for key, value in config.items():
        settings[key] = plain(value) if isinstance(value, dict) else value
    return settings


def settings_at(config: dict, name: str, where: str = "cfg.model") -> dict:
    """The nested settings of this name. ValueError: it is something else."""
    settings = config[name]
    if not isinstance(settings, dict):
        raise ValueError(f"{where}.{name} is {settings!r}; it must be a dict of settings")
    return settings


def value_at(config: dict, name: str, default: Any) -> Any:
    """The value at a dotted name; `default` where there is none."""
    for part in name.split("."):
        if not isinstance(config, dict) or part not in config:
            return default
        config = config[part]
    return config


def require(config: dict, wanted: dict[str, Any], where: str = "cfg.model") -> None:
    """ValueError: the first setting that is given and differs from the only value known."""
    for name, value in wanted.items():
        given = value_at(config, name, value)
        if given != value:
            raise ValueError(f"{where}.{name} is {given!r}; only {value!r} is known to data2vec's published models")
