"""Imports a modality, an objective or a report by its module's name and checks that it exports its contract."""

import importlib
import pkgutil
from types import ModuleType

from d2v.settings import shortened

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
    "d2v.evaluation.reports": ("report",),
}


def load(family: str, name: str) -> ModuleType:
    """The module `name` of `family`; a dotted name is the user's own package.

    ValueError: it is unknown, or a part of the contract is missing.
    """
    path = name if "." in name else f"{family}.{name}"
    try:
        module = importlib.import_module(path) if all(map(str.isidentifier, path.split("."))) else None
    except ModuleNotFoundError as error:
        if error.name is None or not path.startswith(error.name):  # it exists, and something that it imports does not
            raise
        module = None
    if module is None:
        raise ValueError(
            f"{family} has no {shortened(name)}; it has {', '.join(available(family))}, "
            "or give the dotted name of your own package"
        )
    missing = [part for part in CONTRACTS[family] if part not in vars(module)]
    if missing:
        raise ValueError(f"{path} is no plug-in of {family}: it does not export {', '.join(missing)}")
    return module


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
