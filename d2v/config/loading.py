"""A Config from YAML and `key=value` overrides: dataclasses are the schema, a misspelt key is an error."""

import logging
from collections.abc import Callable, Collection
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from d2v import plugins
from d2v.config.bases import DEFAULT_OBJECTIVE, composed, merged, origin, over_another
from d2v.config.checks import check_keys
from d2v.config.differences import changes
from d2v.config.find import find_config
from d2v.config.given import given
from d2v.config.schema import RESULT_SECTIONS, SECTIONS, Config, ModelConfig, RunConfig, TrainConfig
from d2v.config.written import Argument, dumped, in_home, read, section_of
from d2v.evaluation.config import LABEL, EmbedConfig, EvaluateConfig
from d2v.files import written
from d2v.models.trunk_config import TrunkConfig
from d2v.settings import check_readers, default_of, hints_of, shortened, stepping_aside

log = logging.getLogger(__name__)
NAMED = "objective.name="


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The Config of a YAML file, or of one that d2v brings by its name, and `key=value` overrides.

    ValueError: what is wrong with them, with a suggestion.
    """
    path = find_config(path)
    config = from_dict(load_values(path, overrides), str(path))
    config.given = given(path, overrides or [])
    return config


def load_values(path: str | Path, overrides: list[str] | None = None) -> dict:
    """A YAML file with its bases and overrides, `key=value` or further configs, whose values are not yet read.

    Nested dictionaries. ValueError: whatever is wrong with their form.
    """
    values, overrides = composed(find_config(path)), overrides or []
    objective = next((one for one in reversed(overrides) if one.startswith(NAMED)), None)  # of several the last counts
    for override in overrides:
        if "=" not in override:
            values = over_another(values, _overlay(override))
        elif not override.startswith(NAMED):
            _override(values, override)
        elif override == objective:
            _make_room(values, Argument(override.removeprefix(NAMED)))
            _override(values, override)
    return values


def _make_room(values: dict, name: Argument) -> None:
    """For another objective: what files say of their own goes, as in a base; what was typed stays."""
    section = section_of(values.get("objective"))
    if isinstance(section, dict) and "parts" not in section and _objective_of(values) != read(name, str):
        values["objective"] = {key: value for key, value in section.items() if isinstance(value, Argument)}


def _override(values: dict, argument: str) -> None:
    """Puts what `key=value` says into nested dictionaries. ValueError: there is no key, or it is no setting's."""
    key, _, text = argument.partition("=")
    if not key:
        raise ValueError(f"argument {shortened(argument)} is not key=value")
    *names, last = key.split(".")
    here = values
    for number, name in enumerate(names, start=1):
        inner = section_of(here.get(name))
        if not isinstance(inner, dict):
            raise ValueError(
                f"argument {shortened(argument)}: {'.'.join(names[:number])} is {shortened(inner)}, which has no keys"
            )
        here[name] = inner
        here = inner
    old, new = here.get(last), section_of(Argument(text))
    is_section = isinstance(old, dict) or not names
    here[last] = merged(old or {}, new) if is_section and isinstance(new, dict) else Argument(text)


def _overlay(name: str) -> dict:
    """The values of a further config. ValueError: there is none."""
    try:
        return composed(find_config(name))
    except ValueError as error:
        raise ValueError(f"argument {name!r} is neither key=value nor a config: {error}") from None


def from_dict(values: dict, path: str = "config.yaml", *, ours: bool = True) -> Config:
    """The Config of plain dictionaries; `path` is named in errors. ValueError as in load_config.

    `ours`: the user has written them; else they came with a model, and modules that they name are not imported.
    """
    check_keys(values, SECTIONS, "", path)
    name, load = modality_of(values, path), plugins.load if ours else plugins.trusted
    modality = load("d2v.modalities", name)
    objective = load("d2v.objectives", _objective_of(values))
    if not is_dataclass(objective.Config) or "name" not in {one.name for one in fields(objective.Config)}:
        raise ValueError(
            f"{objective.__name__}.Config must be a dataclass with a field `name`, by default {_objective_of(values)!r}"
        )
    parts = {
        "model": {"frontends": {name: modality.FrontendConfig}, "trunk": TrunkConfig},
        "data": modality.DataConfig,
        "objective": objective.Config,
        "train": TrainConfig,
        "run": RunConfig,
        "evaluate": EvaluateConfig,
        "embed": EmbedConfig,
    }
    built = typed(parts, values, "", path)
    follow_label(built["evaluate"], built["data"], values.get("evaluate"))
    return Config(**{**built, "model": ModelConfig(**built["model"])})


def follow_label(evaluate: EvaluateConfig, data: Any, values: Any) -> None:
    """evaluate.label is the column that data.label names, unless `values`, its section, or evaluate.path say more."""
    named, values = getattr(data, "label", ""), section_of(values)
    typed_by_hand = isinstance(values, dict) and isinstance(values.get("label"), Argument)
    if named and evaluate.label == LABEL and not evaluate.path and not typed_by_hand:
        evaluate.label = named


def _objective_of(values: dict) -> str:
    section = section_of(values.get("objective"))
    return read(section.get("name", DEFAULT_OBJECTIVE), str) if isinstance(section, dict) else DEFAULT_OBJECTIVE


def modality_of(values: dict, path: str) -> str:
    """The one modality that model.frontends names. ValueError: none, or several."""
    model = section_of(values.get("model"))
    frontends = section_of(model.get("frontends")) if isinstance(model, dict) else {}
    if not isinstance(frontends, dict) or len(frontends) != 1:
        names = ", ".join(plugins.available("d2v.modalities"))
        raise ValueError(
            f"{path}: model.frontends must name one modality ({names}) and its settings; it is {shortened(frontends)}"
        )
    return str(next(iter(frontends)))


def save_yaml(values: dict, path: Path) -> None:
    """Plain dictionaries as YAML, whole or not at all."""
    with written(path) as temporary:
        temporary.write_text(dumped(values), "utf-8")


def differences(
    old: dict, new: dict, sections: tuple[str, ...] = RESULT_SECTIONS, places: Collection[str] = ()
) -> list[str]:
    """Which settings differ between two configs as dictionaries, one "key: old -> new" each, in `sections` only.

    `places`: see d2v/config/differences.py.
    """
    return changes({s: old.get(s) for s in sections}, {s: new.get(s) for s in sections}, places)


def typed(parts: Any, values: Any, where: str, path: str) -> Any:
    """Dataclasses from nested `parts` (dicts of dataclasses) and the values given for them.

    ValueError: a key or value that they do not take, or one that is set and not read.
    """
    drafts = _sections(_typed(parts, values, where, path, _draft), where)
    aside = stepping_aside(drafts, _arguments(values, where))
    if aside:
        log.warning("left out, as nothing reads them beside what was typed: %s", ", ".join(aside))
    for name in aside:
        values = _without(values, name.removeprefix(f"{where}.").split("."))
    built = _typed(parts, values, where, path, lambda kind, given: kind(**given))
    check_readers(_sections(built, where))
    return built


def _draft(kind: Any, given: dict[str, Any]) -> Any:
    """A dataclass of which nothing is checked yet."""
    draft = object.__new__(kind)
    for one in fields(kind):
        setattr(draft, one.name, given[one.name] if one.name in given else default_of(one))
    return draft


def _without(values: dict, names: list[str]) -> dict:
    """Nested dictionaries without one value."""
    first, *inner = names
    kept = {name: value for name, value in values.items() if name != first}
    return {**kept, first: _without(values[first], inner)} if inner else kept


def _arguments(values: Any, where: str) -> set[str]:
    """The names of the settings that were typed on the command line."""
    section = section_of(values)
    if not isinstance(section, dict):
        return {where} if isinstance(values, Argument) else set()
    inner = [_arguments(value, f"{where}.{name}".lstrip(".")) for name, value in section.items()]
    return set().union(*inner) | ({f"{where}.{name}" for name in section} if isinstance(values, Argument) else set())


def _typed(parts: Any, values: Any, where: str, path: str, make: Callable[[Any, dict], Any]) -> Any:
    values = section_of(values)
    if isinstance(parts, dict):
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {where} must hold the keys {', '.join(parts)}; it is {shortened(values)}")
        check_keys(values, tuple(parts), where, path)
        return {
            name: _typed(part, values.get(name), f"{where}.{name}".lstrip("."), path, make)
            for name, part in parts.items()
        }
    if not isinstance(values, dict):
        raise ValueError(f"{path}: {where} must hold keys of {parts.__name__}; it is {shortened(values)}")
    known = {one.name: one for one in fields(parts)}
    check_keys(values, tuple(known), where, path)
    kinds = hints_of(parts)
    given = {name: _read(known[name], kinds[name], value, where, path, make) for name, value in values.items()}
    try:
        return make(parts, given)
    except TypeError as error:  # of a field without default
        raise ValueError(f"{path}: {where}: {error}") from None


def _read(one: Field, kind: Any, value: Any, where: str, path: str, make: Callable[[Any, dict], Any]) -> Any:
    """The value of a field. ValueError: it is of another type."""
    key = f"{where}.{one.name}"
    if is_dataclass(kind):
        return _typed(kind, value, key, path, make)
    allowed = one.metadata.get("allowed")
    if value is False and allowed is not None and allowed.among and "no" in allowed.among:
        return "no"  # as YAML reads it
    try:
        found = read(value, kind, default_of(one))
    except ValueError as error:
        is_argument = isinstance(value, Argument)
        came_from = f"argument {shortened(f'{key}={value}')}" if is_argument else origin(path, key)
        raise ValueError(f"{came_from}: {key}: it is {shortened(value)}; {error}") from None
    return in_home(found) if one.metadata.get("place") else found


def _sections(built: Any, where: str) -> dict[str, Any]:
    """The dataclasses in nested dicts by their names, as users write them."""
    if is_dataclass(built):
        return {where: built}
    found = {}
    for name, inner in built.items():
        found |= _sections(inner, f"{where}.{name}".lstrip("."))
    return found
