"""A Config from YAML and `key=value` overrides: dataclasses are the schema, a misspelt key is an error."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from d2v import plugins
from d2v.config.bases import composed, merged, origin
from d2v.config.checks import _check_fields, check_keys
from d2v.config.differences import changes
from d2v.config.find import find_config
from d2v.config.schema import RESULT_SECTIONS, SECTIONS, Config, ModelConfig, RunConfig, TrainConfig
from d2v.evaluation.config import EmbedConfig, EvaluateConfig
from d2v.files import written
from d2v.models.transformer import TrunkConfig


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """The Config of a YAML file, or of one that d2v brings by its name, and `key=value` overrides.

    ValueError: what is wrong with them, with a suggestion.
    """
    path = find_config(path)
    return from_dict(load_values(path, overrides), str(path))


def load_values(path: str | Path, overrides: list[str] | None = None) -> dict:
    """A YAML file with its bases and overrides, `key=value` or further configs, as plain dictionaries.

    ValueError: whatever is wrong with their form.
    """
    values = OmegaConf.create(composed(find_config(path)))
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            values = OmegaConf.create(merged(OmegaConf.to_container(values), _overlay(override)))  # type: ignore
            continue
        if not key:
            raise ValueError(f"argument {override!r} is not key=value")
        if not value:  # what a shell leaves of key=''; YAML would read a null
            override = f"{key}=''"
        try:
            values = OmegaConf.merge(values, OmegaConf.from_dotlist([override]))
        except Exception as error:  # YAML and OmegaConf have no common base here
            raise ValueError(f"argument {override!r}: {' '.join(str(error).split())}") from None
    plain = OmegaConf.to_container(values)
    assert isinstance(plain, dict)
    return plain


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
    objective = load("d2v.objectives", (values.get("objective") or {}).get("name", "data2vec"))
    parts = {
        "model": {"frontends": {name: modality.FrontendConfig}, "trunk": TrunkConfig},
        "data": modality.DataConfig,
        "objective": objective.Config,
        "train": TrainConfig,
        "run": RunConfig,
        "evaluate": EvaluateConfig,
        "embed": EmbedConfig,
    }
    built = typed(parts, OmegaConf.create(values), "", path)
    return Config(**{**built, "model": ModelConfig(**built["model"])})


def modality_of(values: dict, path: str) -> str:
    """The one modality that model.frontends names. ValueError: none, or several."""
    model = values.get("model") if isinstance(values.get("model"), dict) else {}
    frontends = model.get("frontends") or {}
    if not isinstance(frontends, dict) or len(frontends) != 1:
        names = ", ".join(plugins.available("d2v.modalities"))
        raise ValueError(
            f"{path}: model.frontends must name one modality ({names}) and its settings; it is {frontends!r}"
        )
    return next(iter(frontends))


def save_yaml(values: dict, path: Path) -> None:
    """Plain dictionaries as YAML, whole or not at all."""
    with written(path) as temporary:
        temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(values)))


def differences(old: dict, new: dict, sections: tuple[str, ...] = RESULT_SECTIONS) -> list[str]:
    """Which settings differ between two configs as dictionaries, one "key: old -> new" each, in `sections` only."""
    return changes({s: old.get(s) for s in sections}, {s: new.get(s) for s in sections})


def typed(parts: Any, values: Any, where: str, path: str) -> Any:
    """Dataclasses from nested `parts` (dicts of dataclasses) and the values given for them."""
    if isinstance(parts, dict):
        values = {} if values is None else values
        if not isinstance(values, dict | DictConfig):
            raise ValueError(f"{path}: {where} must hold the keys {', '.join(parts)}; it is {values!r}")
        check_keys(values, tuple(parts), where, path)
        return {
            name: typed(part, values.get(name), f"{where}.{name}".lstrip("."), path) for name, part in parts.items()
        }
    values = {} if values is None else values
    if not isinstance(values, dict | DictConfig):
        raise ValueError(f"{path}: {where} must hold keys of {parts.__name__}; it is {values!r}")
    _check_fields(parts, values, where, path)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(parts), values))
    except OmegaConfBaseException as error:
        if isinstance(error.__cause__, ValueError) and not isinstance(error.__cause__, OmegaConfBaseException):
            raise error.__cause__ from None
        reason = str(error).splitlines()[0]
        key = f"{where}.{error.full_key or '?'}"
        raise ValueError(f"{origin(path, key)}: {key}: {reason}") from None
