"""One or two settings of a good command line, changed to something hostile."""

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tiny

from d2v import plugins
from d2v.config.loading import load_config
from d2v.finetuning.config import load
from fuzz.journeys import (
    MODALITIES,
    Outcome,
    Template,
    embedding,
    evaluation,
    finetuning,
    journey,
    pretraining,
    wrong_run,
    wrong_table,
)

TEXTS = (
    "null", "nan", ".nan", "inf", "-.inf", "-1", "0", "1", "2", "3", "7", "1e-9", "1e9", "1e30", "1000000000000",
    "10000000", "-0.0", "0.5", "1.0", "0.999999", "true", "false", "no", "on", "007", "1.50", "[]", "[1]", "[0.1, 0.2]",
    "[.nan, 1]", "[1, 2, 3]", "[[1]]", "[a, b]", "{}", "{a: 1}", "{name: dino}", "a b", "a #b", "#", "a: b", "~", "..",
    "/", "/dev/null", "/dev/full", "/proc/1/mem", "é", "x" * 300, "[", "'", '"', "${oc.env:HOME}", "${data.path}", 
    "???", "!!python/object:os.system", "&a", "*a", "1_000", "0x10", "1:30", "2024-01-01", "\t", "\n", "%s", "\u202e",
    "data2vec",
)  # fmt: skip
ENTRIES = ("nan", "1", "-1", "a", "", "null", "1e30")  # of lists
PLACES = ("run.dir", "data.path", "train.init_from")  # what lies there is attacked instead
OBJECTIVES = plugins.available("d2v.objectives")


def case(template: Template, seed: int, folder: Path) -> tuple[str, Outcome]:
    """A command line and how it ended."""
    generator = np.random.default_rng((1, seed))
    script = str(generator.choice(["pretrain", "finetune", "evaluate", "embed"], p=[0.6, 0.2, 0.1, 0.1]))
    modality = str(generator.choice(MODALITIES))
    objective = str(generator.choice([name for name in OBJECTIVES if tiny.fits(modality, name)]))
    out = folder / "out.parquet"
    good = {
        "pretrain": lambda: pretraining(template, modality, folder, objective),
        "finetune": lambda: finetuning(template, modality, folder),
        "evaluate": lambda: evaluation(template, modality, folder),
        "embed": lambda: embedding(template, modality, template.data(modality), out),
    }[script]()
    keys = settings_of(script, modality, objective, template)
    changed = [change(generator, keys)]
    if generator.random() < 0.25:
        changed.append(change(generator, keys))

    def check(printed: str) -> str | None:
        if script == "embed":
            return wrong_table(out, set())
        if script == "evaluate":
            return "nan in the table" if "| nan" in printed else None
        return wrong_run(folder, printed) or changed_meaning(script, [*good, *changed], changed)

    arguments = [*good, *changed]
    return f"{script} {' '.join(map(repr, arguments))}", journey(script, arguments, check)


def changed_meaning(script: str, arguments: list[str], changed: list[str]) -> str | None:
    """A string setting that the command line gives, and the config does not hold as it is written."""
    config: Any = load_config(arguments[0], arguments[1:]) if script == "pretrain" else load(arguments)[0]
    for argument in dict.fromkeys(changed):
        key, _, text = argument.partition("=")
        held = config
        for name in key.split("."):
            held = held[name] if isinstance(held, dict) else getattr(held, name)
        last = [other for other in changed if other.partition("=")[0] == key][-1]
        if isinstance(held, str) and argument == last and text and not text.startswith("~") and held != text:
            return f"{argument!r} is held as {held!r}"
    return None


def change(generator: np.random.Generator, keys: dict[str, Any]) -> str:
    """One hostile `key=value`, of settings with their defaults."""
    key = str(generator.choice(list(keys)))
    default, draw = keys[key], generator.random()
    if draw < 0.1:  # a section as a scalar, a scalar as a section, a misspelt key
        key = str(generator.choice([key.rpartition(".")[0], f"{key}.x", f"{key}s"]))
    if isinstance(default, int | float) and not isinstance(default, bool) and draw < 0.6:
        near = [-default, default * 2, default // 2, default + 1, default - 1, -1, 0, 1, 2, 3, 10**12]
        if isinstance(default, float):
            near += [default / 2, default * 10, default / 10, 0.5, 1e-9, 1e30, float("nan"), float("inf")]
        return f"{key}={near[int(generator.integers(len(near)))]}"
    if isinstance(default, list) and draw < 0.6:
        return f"{key}=[{', '.join(generator.choice(ENTRIES, size=generator.integers(0, 4)))}]"
    return f"{key}={generator.choice(TEXTS)}"


@cache
def settings_of(script: str, modality: str, objective: str, template: Template) -> dict[str, Any]:
    """Every setting of a script, and its value in the good command line."""
    sections = {
        "pretrain": ("model", "data", "objective", "train", "run", "evaluate"),
        "finetune": ("model", "task", "data", "train", "run"),
        "evaluate": ("evaluate",),
        "embed": ("embed", "data"),
    }[script]
    if script == "finetune":
        config: Any = load(finetuning(template, modality, Path("runs")))[0]
    else:
        path, *overrides = pretraining(template, modality, Path("runs"), objective)
        config = load_config(path, overrides)
    flat: dict[str, Any] = {}
    for section in sections:
        flatten(getattr(config, section), section, flat)
    return {key: value for key, value in flat.items() if key not in PLACES}


def flatten(value: Any, key: str, flat: dict[str, Any]) -> None:
    """Leaves of nested dataclasses and dictionaries, by dotted keys."""
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            flatten(inner, f"{key}.{name}", flat)
    else:
        flat[key] = value
