"""Writes the pages that are made from the code: tables of settings, from dataclasses, and the rooms of the API.

python docs/generate.py            the pages that are committed: docs/settings/*.md, docs/api/*.md
python docs/generate.py --methods  and others: docs/settings/methods/*.md, a table for each modality and objective

Modalities, objectives and rooms are found by looking; nothing is listed here.
"""

import importlib
import inspect
import json
import pkgutil
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import d2v
from d2v import plugins
from d2v.config.joint import JointTrainConfig
from d2v.config.schema import Config
from d2v.objectives.common.parts import JointSettings
from d2v.settings import LARGEST, Allowed, default_of, type_name
from d2v.training.online_probe import ProbeConfig

DOCS = Path(__file__).resolve().parent
HEAD = "<!-- Made by docs/generate.py: change the code, then run it. -->\n\n"
COLUMNS = "| key | default | may be | |\n|---|---|---|---|\n"


@dataclass(frozen=True)
class Section:
    """A dataclass of settings and the keys before its own, as users write them."""

    prefix: str
    kind: type


@dataclass(frozen=True)
class Row:
    """One setting."""

    key: str
    default: str
    may_be: str
    sentence: str


# What there is.


def modules(package: types.ModuleType) -> Iterator[types.ModuleType]:
    """All modules below a package."""
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def plugin(family: str, name: str) -> types.ModuleType:
    """A modality or an objective."""
    return plugins.load(f"d2v.{family}", name)


def shared_sections() -> list[Section]:
    """Those that belong to no modality and to no objective."""
    hints = typing.get_type_hints(Config)
    trunk = typing.get_type_hints(hints["model"])["trunk"]
    names = [name for name, kind in hints.items() if is_dataclass(kind) and name != "model"]
    return [Section("model.trunk", trunk), *(Section(name, hints[name]) for name in names)]


def sections(modality: str, objective: str) -> list[Section]:
    """All that a user of this modality and objective may set, in the order of a config."""
    shared = {section.prefix: section for section in shared_sections()}
    module = plugin("modalities", modality)
    return [
        Section(f"model.frontends.{modality}", module.FrontendConfig),
        shared.pop("model.trunk"),
        Section("data", module.DataConfig),
        Section("objective", plugin("objectives", objective).Config),
        *shared.values(),
    ]


def labelled(modality: str) -> list[type]:
    """The dataclasses of a modality for labelled data: those with a validation split, but for what others extend."""
    module = plugin("modalities", modality)
    found: set[type] = set()
    for inner in modules(module):
        found |= {kind for kind in vars(inner).values() if _has_both_splits(kind)}
    own = {kind for kind in found if kind.__module__.startswith(module.__name__)}
    leaves = own.difference(*(kind.__bases__ for kind in own))
    return sorted(leaves, key=lambda kind: (kind.__module__, kind.__name__))


def _has_both_splits(kind: Any) -> bool:
    """Whether it is a dataclass with a split to train on and one to validate with."""
    if not isinstance(kind, type) or not is_dataclass(kind):
        return False
    return {"split", "validation_split"} <= {one.name for one in fields(kind)}


def finetuning_sections() -> list[Section]:
    """Those of fine-tuning that belong to no modality."""
    config = next(
        vars(module)["FinetuneConfig"]
        for module in modules(importlib.import_module("d2v.finetuning"))
        if "FinetuneConfig" in vars(module)
    )
    tasks = dict.fromkeys(vars(d2v)[name].task_class for name in d2v.__all__ if "task_class" in dir(vars(d2v)[name]))
    return [Section("train", typing.get_type_hints(config)["train"]), *(Section("task", kind) for kind in tasks)]


# One setting.


def rows(section: Section) -> list[Row]:
    """The settings of a section and of those within it."""
    found, hints = [], typing.get_type_hints(section.kind)
    for one in fields(section.kind):
        key, inner = f"{section.prefix}.{one.name}", hints[one.name]
        if is_dataclass(inner) and isinstance(inner, type):
            found += rows(Section(key, inner))
        else:
            found.append(Row(key, shown(default_of(one)), may_be(one, inner), one.metadata.get("sentence", "")))
    return found


def shown(value: Any) -> str:
    """A default as YAML has it."""
    if value is MISSING:
        return "required"
    if value == "":
        return "`''`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def may_be(one: Field, kind: Any) -> str:
    """What a setting may be: its bounds or choices where it declares some, else its type."""
    allowed = one.metadata.get("allowed")
    ends = "" if allowed is None else str(allowed).removeprefix("it must be ").removeprefix("it may be ")
    bounded = allowed is not None and replace(allowed, limit=LARGEST) != Allowed()
    if not bounded:
        return type_name(kind)
    if typing.get_origin(kind) is list:
        start = "a list" if allowed.count is None else f"a list of {allowed.count}"
        return start if ends == "a finite number" else f"{start}, each {ends}"
    return f"{ends}, or null" if type(None) in typing.get_args(kind) else ends


# Pages.


def table(found: list[Row]) -> str:
    """A table of settings."""
    text = COLUMNS
    for row in found:
        cells = [f"`{row.key}`", row.default, row.may_be, row.sentence]
        text += f"| {' | '.join(map(escaped, cells))} |\n"
    return text


def escaped(cell: str) -> str:
    """A cell of a table; outside of code `<s>` would be a tag."""
    text = cell.replace("|", r"\|")
    return text if text.startswith("`") else text.replace("<", "&lt;")


def described(title: str, module_or_class: Any, section: Section) -> str:
    """A heading, what the docstring says first, a table."""
    about = (inspect.getdoc(module_or_class) or "").partition("\n\n")[0]
    return f"## {title}\n\n{about}\n\n{table(rows(section))}\n"


def index_page(modalities: list[str], objectives: list[str]) -> str:
    """The sections, and the matrix of modalities and objectives."""
    text = f"""{HEAD}# Settings

Every key of a YAML file can be given another value on the command line, as `section.key=value`; a misspelt key is an
error. `model`, `data`, `objective` and `train` may change the result of a run; `run`, `evaluate` and `embed` may not.

* [Shared by all](common.md): `model.trunk`, `train`, `run`, `evaluate`, `embed`.
* Of a modality, `model.frontends` and `data`: {", ".join(f"[{name}]({name}.md)" for name in modalities)}.
* [Of an objective](objectives.md), `objective`.
* [Of fine-tuning](finetuning.md), `train` and `task`.
* [Of a joint run](joint.md) of several modalities, and of pairs.

## One table for what you train

All settings of a modality with an objective. These pages are made by `make docs`.

"""
    text += f"| | {' | '.join(modalities)} |\n|---|{'---|' * len(modalities)}\n"
    for objective in objectives:
        links = (f"[table](methods/{modality}_{objective}.md)" for modality in modalities)
        text += f"| `{objective}` | {' | '.join(links)} |\n"
    return text


def modality_page(modality: str) -> str:
    """Settings of a modality: its frontend, its data, its labelled data."""
    module = plugin("modalities", modality)
    text = f"{HEAD}# Settings of {modality}\n\n{module.__doc__}\n\n"
    frontend = f"model.frontends.{modality}"
    text += described(f"`{frontend}`", module.FrontendConfig, Section(frontend, module.FrontendConfig))
    text += described("`data`, of pretraining", module.DataConfig, Section("data", module.DataConfig))
    for kind in labelled(modality):
        text += described(f"`data`, of fine-tuning: {kind.__name__}", kind, Section("data", kind))
    return text


def joint_page() -> str:
    """Settings that a joint run has beside those of its parts."""
    text = f"{HEAD}# Settings of joint runs\n\nSections of a part are those of its modality and method, with its name "
    text += "before the last word: `data.image.path`, `objective.parts.image.top_k`. "
    text += "See [multimodal](../multimodal.md).\n\n"
    train = [
        row for row in rows(Section("train", JointTrainConfig)) if row.key in ("train.batch_size", "train.init_from")
    ]
    text += described("`objective`", JointSettings, Section("objective", JointSettings))
    text += f"## `train`\n\nWhat is by part or modality; the rest is as in every run.\n\n{table(train)}\n"
    text += described("`run.probe.image`", ProbeConfig, Section("run.probe.image", ProbeConfig))
    for name in plugins.available("d2v.objectives.paired"):
        module = plugin("objectives.paired", name)
        text += described(
            f"`objective.parts.image+text`: `{name}`", module, Section("objective.parts.image+text", module.Config)
        )
    two = {name: plugin("modalities", name) for name in ("image", "text")}
    kind = plugins.pairs().data_config(two)
    return text + described("`data.image+text`", kind, Section("data.image+text", kind))


def method_page(modality: str, objective: str) -> str:
    """One table of all settings of a modality with an objective."""
    found = []
    for section in sections(modality, objective):
        found += rows(section)
    about = plugin("objectives", objective).__doc__.strip().partition("\n\n")[0]
    return f"{HEAD}# {objective}, {modality}\n\n{about}\n\n{table(found)}"


def rooms() -> dict[str, str]:
    """The rooms of the code by the name of their page: packages below d2v, and modalities."""
    found = {"d2v": "d2v"}
    for entry in pkgutil.iter_modules(d2v.__path__):
        if entry.ispkg and entry.name != "modalities":
            found[entry.name] = f"d2v.{entry.name}"
    modalities = importlib.import_module("d2v.modalities")
    found |= {e.name: f"d2v.modalities.{e.name}" for e in pkgutil.iter_modules(modalities.__path__) if e.ispkg}
    return found


def api_page(package: str) -> str:
    """A room of the code; what is in it mkdocstrings reads from the docstrings when the site is built."""
    if package == "d2v":
        names = [entry.name for entry in pkgutil.iter_modules(d2v.__path__) if not entry.ispkg]
        parts = [f"::: d2v.{name}\n" for name in names]
    else:
        parts = [f"::: {package}\n    options:\n      show_submodules: true\n"]
    return f"{HEAD}# {package}\n\n" + "\n".join(parts)


def api_index(found: dict[str, str]) -> str:
    """The rooms with the first sentence of each."""
    text = f"{HEAD}# API\n\nFrom the docstrings. Tensors' letters are explained at the top of each module.\n\n"
    text += "| | |\n|---|---|\n"
    for page, package in found.items():
        doc = (importlib.import_module(package).__doc__ or "").strip().splitlines()[0]
        text += f"| [`{package}`]({page}.md) | {doc} |\n"
    return text


def pages() -> dict[str, str]:
    """The pages that are committed, by their paths below docs/."""
    modalities, objectives = (plugins.available(f"d2v.{family}") for family in ("modalities", "objectives"))
    common = "".join(described(f"`{s.prefix}`", s.kind, s) for s in shared_sections())
    methods = ""
    for name in objectives:
        module = plugin("objectives", name)
        methods += described(f"`{name}`", module, Section("objective", module.Config))
    tuning = "".join(described(f"`{s.prefix}`: {s.kind.__name__}", s.kind, s) for s in finetuning_sections())
    found = {
        "settings/index.md": index_page(modalities, objectives),
        "settings/common.md": f"{HEAD}# Settings shared by all\n\n{common}",
        "settings/objectives.md": f"{HEAD}# Settings of objectives\n\n{methods}",
        "settings/joint.md": joint_page(),
        "settings/finetuning.md": f"{HEAD}# Settings of fine-tuning\n\n{tuning}",
        "api/index.md": api_index(rooms()),
    }
    found |= {f"settings/{modality}.md": modality_page(modality) for modality in modalities}
    found |= {f"api/{page}.md": api_page(package) for page, package in rooms().items()}
    return {path: f"{text.rstrip()}\n" for path, text in found.items()}


def method_pages() -> dict[str, str]:
    """The pages of each modality and objective, which are made with the site."""
    found = {}
    for modality in plugins.available("d2v.modalities"):
        for objective in plugins.available("d2v.objectives"):
            found[f"settings/methods/{modality}_{objective}.md"] = method_page(modality, objective)
    return found


def write(folder: Path, *, methods: bool) -> None:
    """Writes the pages, and removes those that the code no longer gives."""
    found = pages() | (method_pages() if methods else {})
    for place in ("settings", "api"):
        for old in (folder / place).rglob("*.md"):
            if str(old.relative_to(folder)) not in found and HEAD.strip() in old.read_text("utf-8"):
                old.unlink()
    for path, text in found.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, "utf-8")


if __name__ == "__main__":
    write(DOCS, methods="--methods" in sys.argv[1:])
