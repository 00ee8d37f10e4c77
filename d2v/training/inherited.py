"""What a command takes from the model that it loads: its architecture, and how it was fed.

Another value is an error where it was given: of the architecture on the command line, of data in a file too.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from d2v import plugins
from d2v.config.bases import read_yaml
from d2v.config.given import COMMAND_LINE
from d2v.config.schema import OneModality
from d2v.interop.fidelity import FREE, RESIZED
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel, with_frontend
from d2v.training.checkpoint import checkpoints_in
from d2v.training.preparation import preparation_of
from d2v.training.run_folder import CONFIG
from d2v.training.weights import home

Say = Callable[[str], None]


class Origin(NamedTuple):
    """Where a model comes from: `setting`, model or train.init_from, names `path`."""

    setting: str
    path: str

    def __str__(self) -> str:
        return f"{self.setting}={self.path}"


def former_run(folder: Path) -> dict[str, Any] | None:
    """The settings of the run that is in a folder already, of which what it was begun with may be gone; None: none."""
    saved = folder / CONFIG
    return read_yaml(saved) if saved.is_file() else None


def resumes(folder: Path) -> bool:
    """Whether a run goes on from its own checkpoint."""
    return bool(checkpoints_in(folder / "checkpoints")) and (folder / CONFIG).is_file()


def take_data(config: OneModality, origin: Origin, say: Say, former: dict[str, Any] | None = None) -> None:
    """Settings of data become those that the model was fed by: mean and deviation, normalisation, tokenizer.

    `former`: the section data of the run that is resumed; what was given then stays, to be compared. ValueError: the
    model does not have them, or another value was given.
    """
    place = home(Path(origin.path))  # which may be gone where there is a former run
    place = preparation_of(place, config.modality) if former is None else place
    data, taken, changed = config.data, copy.deepcopy(config.data), []  # type: ignore[attr-defined]
    try:
        plugins.load("d2v.modalities", config.modality).inherit(taken, place, former)
    except ValueError as error:
        raise ValueError(f"{origin.setting}: {error}") from None
    for name, value in vars(taken).items():
        before, where = vars(data)[name], config.given.get(f"data.{name}")
        if before == value:
            continue
        if where is not None and before is not None:  # null was given: none is asked for
            if former is None:
                raise ValueError(
                    f"data.{name} is {before}; the encoder of {origin.path} was trained with {value}: the first is "
                    f"from {where}, the second from {origin}; leave it out, or give data.{name}={_plain(value)}"
                )
            continue
        setattr(data, name, value)
        changed.append(f"data.{name}={value} instead of {before}")
    if changed:
        say(f"{origin.path} was fed with {', '.join(changed)}")


def take_architecture(
    config: OneModality, model: D2vConfig, origin: Origin, say: Say, *, resumed: bool = False, resizable: bool = False
) -> dict[str, Any]:
    """Settings that shape an encoder become those of the model; what no weight depends on stays the config's.

    Says what was another value in a file. `resumed`: what the command line gives stays, to be compared. `resizable`:
    the command line may give another size, which is returned. ValueError: it gives something else.
    """
    name, changed, sizes = config.modality, [], {}
    parts = {"trunk": (config.model.trunk, model.trunk), f"frontends.{name}": (config.frontend, model.frontends[name])}
    for part, (own, theirs) in parts.items():
        for field, value in theirs.items():
            before = vars(own).get(field)
            if before == value or field not in vars(own) or any(word in field for word in FREE):
                continue
            if config.given.get(f"model.{part}.{field}") == COMMAND_LINE:
                if resizable and field in RESIZED:
                    sizes[field] = before
                elif not resumed:
                    raise ValueError(
                        f"model.{part}.{field} is {before}; {origin.path} was trained with {value}: the first is from "
                        f"{COMMAND_LINE}, the second from {origin}; leave it out"
                    )
                continue
            setattr(own, field, value)
            changed.append(f"{part}.{field}={value} instead of {before}")
    if changed:
        say(f"architecture of {origin.path}: {', '.join(changed)}")
    return sizes


def resized(encoder: D2vModel, modality: str, sizes: dict[str, Any], origin: Origin, say: Say) -> D2vModel:
    """The encoder as it reads inputs of other sizes than it was trained with; itself where there are none."""
    if not sizes:
        return encoder
    for field, value in sizes.items():
        say(f"{field} {value} in place of {encoder.config.frontends[modality][field]}: positions are resized")
    try:
        return with_frontend(encoder, modality, sizes)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{origin} cannot read {sizes}, which {COMMAND_LINE} gives: {reason}") from None


def _plain(value: Any) -> Any:
    """As a user writes it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else value
