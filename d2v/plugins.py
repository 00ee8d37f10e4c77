"""Imports a modality, an objective or a report by its module's name and checks that it exports its contract."""

import importlib
import pkgutil
import sys
from types import ModuleType

CONTRACTS = {
    "d2v.modalities": (
        "FrontendConfig",
        "DataConfig",
        "Frontend",
        "Samples",
        "VIEWS",
        "PREPARED",
        "prepare",
        "inherit",
        "batches",
        "save_preprocessor",
        "labelled_task",
    ),  # see Modality in d2v/protocols.py
    "d2v.objectives": ("Config", "build"),
    "d2v.objectives.paired": ("Config", "build"),
    "d2v.evaluation.reports": ("report",),
}


def load(family: str, name: str) -> ModuleType:
    """The module `name` of `family`; a dotted name is the user's own package.

    For names that the user has written; see `trusted`. ValueError: it is unknown, or a part of the contract is missing.
    """
    path = _path(family, name)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):  # it exists, and something that it imports does not
            raise
        raise _unknown(family, name) from None
    missing = [part for part in CONTRACTS[family] if part not in vars(module)]
    if missing:
        raise ValueError(f"{path} is no plug-in of {family}: it does not export {', '.join(missing)}")
    return module


def trusted(family: str, name: str) -> ModuleType:
    """As `load`, for a name that came with a model: d2v's own module, or one that is imported already.

    A model's config.json may be anybody's, and importing what it names would run it. ValueError: as load; neither.
    """
    path = _path(family, name)
    if not path.startswith(f"{family}.") and path not in sys.modules:
        raise ValueError(
            f"the model names {path!r}, which is not d2v's, and is not imported for it: "
            f"write import {path} before it is loaded, or to d2v convert modality={path}, if it is your own"
        )
    return load(family, name)


def pairs() -> ModuleType:
    """What reads the samples of two modalities side by side."""
    return importlib.import_module("d2v.modalities.common.pairs")


def _path(family: str, name: str) -> str:
    """The name of a module. ValueError: it cannot be one."""
    parts = name.split(".") if isinstance(name, str) else []
    if not parts or not all(part.isidentifier() for part in parts):
        raise _unknown(family, name)
    return name if "." in name else f"{family}.{name}"


def _unknown(family: str, name: str) -> ValueError:
    return ValueError(
        f"{family} has no {name!r}; it has {', '.join(available(family))}, or give the dotted name of your own package"
    )


def available(family: str) -> list[str]:
    """Names of the plug-ins on disk."""
    contract = CONTRACTS[family]
    package = importlib.import_module(family)
    names = []
    for name in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        exported = vars(importlib.import_module(f"{family}.{name}"))
        if all(part in exported for part in contract):
            names.append(name)
    return names
