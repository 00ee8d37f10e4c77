"""`base: other.yaml` at the top of a YAML: the file's values go over those of the other, which may have a base too."""

import types
from pathlib import Path
from typing import Any

from d2v.config.find import brought
from d2v.config.written import parsed

ALLOWED = (
    "base is the path of one YAML file, relative to the file that names it, such as base: _views_tiny.yaml, or a name "
    "that `d2v configs` lists"
)
DEFAULT_OBJECTIVE = "data2vec"


def composed(path: Path) -> dict:
    """The values of a YAML file over those of its bases, without the key `base`.

    ValueError: as `chain`, or a base for another modality.
    """
    files = chain(path)
    base_path, values = files.pop()
    while files:
        path, over = files.pop()
        _check_modality(over, path, values, base_path)
        values, base_path = over_another(values, over), path
    return values


def chain(path: Path) -> list[tuple[Path, dict]]:
    """A YAML file, its base, the base of that and so on, each with its own values.

    ValueError: a file that cannot be read, a base that is none, or one that comes twice.
    """
    files: list[tuple[Path, dict]] = []
    while True:
        values = read_yaml(path)
        has_base, base = "base" in values, values.pop("base", None)
        files.append((path, values))
        if not has_base:
            return files
        path = _base_of(path, base)
        if path.resolve() in [known.resolve() for known, _ in files]:
            names = " -> ".join(str(known) for known, _ in files)
            raise ValueError(f"bases go in a circle: {names} -> {path}; {ALLOWED}")


def over_another(base: dict, over: dict) -> dict:
    """The values of a file over those of another, of which the settings of another objective are left out."""
    return merged(_kept(base, over), over)


def merged(base: dict, over: dict) -> dict:
    """Dictionaries are merged key by key, all else in `over` replaces; an empty section (null) leaves the base's."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        if not isinstance(inner, dict):
            result[key] = value
        elif isinstance(value, dict):
            result[key] = merged(inner, value)
        elif value is not None:
            result[key] = value
    return result


def origin(path: Any, key: str) -> str:
    """Which of a file and its bases gives a dotted key; the file itself where none does, as the command line's keys."""
    if not Path(path).is_file():  # settings that never were a file
        return str(path)
    files = chain(Path(path))
    return str(next((file for file, values in files if _holds(values, key.split("."))), path))


def read_yaml(path: Path) -> dict:
    """The sections of one YAML file. ValueError: there is no such file, or it cannot be read."""
    if not path.is_file():
        raise ValueError(
            f"no config file {path.absolute()}; the first argument is a YAML file such as those in configs/"
        )
    try:
        values = parsed(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(values, dict | types.NoneType):
        raise ValueError(f"{path} must hold sections such as model:, data:, train:")
    return values or {}


def _base_of(path: Path, base: Any) -> Path:
    if not isinstance(base, str) or not base:
        raise ValueError(f"{path}: base is {base!r}; {ALLOWED}")
    found = path.parent / base
    if not found.is_file():
        found = brought(base) or found
    if not found.is_file():
        raise ValueError(f"{path}: base is {base!r}, but there is no file {found.absolute()}; {ALLOWED}")
    return found


def _kept(base: dict, over: dict) -> dict:
    """What of a base is in force: not the settings of an objective that `over` replaces by another one."""
    old = _section(base, "objective").get("name", DEFAULT_OBJECTIVE)
    if _section(over, "objective").get("name", old) == old:
        return base
    return {section: values for section, values in base.items() if section != "objective"}


def _check_modality(over: dict, path: Path, base: dict, base_path: Path) -> None:
    """ValueError: a file and its base are for different modalities, of which no setting means the same."""
    new, old = (_section(_section(values, "model"), "frontends") for values in (over, base))
    if new and old and not set(new) & set(old):
        raise ValueError(
            f"{path} is for {', '.join(map(str, new))}, its base {base_path} for {', '.join(map(str, old))}: "
            f"a base is for the same modality, or has no model.frontends"
        )


def _section(values: dict, name: str) -> dict:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _holds(values: Any, keys: list[str]) -> bool:
    for key in keys:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True
