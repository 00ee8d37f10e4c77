"""Shows every setting of a config as a run would take it, with what it means.

d2v show CONFIG [key=value ...] [WORD]

Settings that differ from their default are marked by *. With a WORD, only those whose name or sentence holds it.
"""

import dataclasses
from typing import Any

from d2v.config.cli import run_cli
from d2v.config.find import config_names, find_config
from d2v.config.joint import is_joint, load_joint
from d2v.config.loading import load_config, load_values
from d2v.finetuning.config import KINDS, load
from d2v.settings import default_of


def main(argv: list[str]) -> None:
    """`argv`: CONFIG and overrides. ValueError: whatever is wrong with them, or no setting has the word."""
    if not argv or "=" in argv[0]:
        raise ValueError("usage: d2v show CONFIG [key=value ...] [WORD]")
    known = config_names()
    overrides = [argument for argument in argv[1:] if "=" in argument or argument in known]
    words = [argument.lower() for argument in argv[1:] if argument not in overrides]
    path = str(find_config(argv[0]))
    lines = settings(_opened(path, overrides), "")
    for word in words:
        lines = [line for line in lines if word in line.lower()]
    if not lines:
        raise ValueError(f"no setting of {argv[0]} has the words {' '.join(words)}")
    print("\n".join(lines))


def _opened(path: str, overrides: list[str]) -> Any:
    """The settings of a run of pretraining, of a joint one, or of fine-tuning."""
    values = load_values(path, overrides)
    if is_joint(values):
        return load_joint(path, overrides)
    is_labelled = {"task", KINDS} & {*values}
    return load([path, *overrides])[0] if is_labelled else load_config(path, overrides)


def settings(values: Any, where: str) -> list[str]:
    """One line for each setting of nested dataclasses and dictionaries."""
    lines = []
    if isinstance(values, dict):
        for name, inner in values.items():
            lines += settings(inner, f"{where}{name}.")
        return lines
    for one in dataclasses.fields(values):
        value = getattr(values, one.name)
        inner = value.values() if isinstance(value, dict) else ()
        if dataclasses.is_dataclass(value) or any(map(dataclasses.is_dataclass, inner)):
            lines += settings(value, f"{where}{one.name}.")
            continue
        mark = " " if value == default_of(one) else "*"
        lines.append(f"{mark} {where}{one.name}={value}  # {one.metadata.get('sentence', '')}")
    return lines


if __name__ == "__main__":
    run_cli(main)
