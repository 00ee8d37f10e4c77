"""The parts of a joint run: how they are mixed and weighted, and what of the common student each sees.

A part is named by the modality that it reads, or by two that it compares: image+text.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from d2v.models.encoder import of_modalities
from d2v.settings import check_fields, of_teacher, setting

AUTO = "auto"
BETWEEN = "+"  # of the two modalities of a part that compares them: image+text


@dataclass
class JointSettings:
    """How parts are mixed and weighted, and the one teacher of all."""

    name: str = setting("joint", "Which method.")
    mix: str = setting(
        "together", "together: a step trains every part; turns: one of them.", among=("together", "turns")
    )
    shares: Any = setting({}, "Of turns: steps of each part in a cycle, 1 where none are given.")
    weights: Any = setting(
        {},
        "Of each part's mean loss, 1 where none is given; 0: it is not trained; auto: what makes the gradients of all "
        "parts equally long in the trunk, measured before the first step.",
    )
    parts: Any = setting({}, "The method of each part, by the modality that it reads, or by two that it compares.")
    measured_steps: int = setting(20, "Batches that auto measures.", least=1, limit=10_000, only={"weights": AUTO})
    ema_decay: float = of_teacher(
        0.999,
        "The teacher's at the start, from which it goes to ema_end_decay.",
        least=0,
        most=1,
        only={"ema_anneal_steps": True},
    )
    ema_end_decay: float = of_teacher(0.9999, "The teacher's after ema_anneal_steps.", least=0, most=1)
    ema_anneal_steps: int = of_teacher(
        30000, "Steps of the run, not of a part, from the first decay to the last.", least=0
    )

    def __post_init__(self):
        """ValueError: a choice that does not exist, a number outside its bounds, or one that nothing reads."""
        check_fields(self, "objective")
        _check_numbers("shares", self.shares, int, "a whole number of at least 1", least=1)
        if self.weights != AUTO:
            _check_numbers("weights", self.weights, float, "a number of 0 or more", least=0)
        if self.shares and self.mix != "turns":
            raise ValueError(f"objective.shares is {self.shares}, which objective.mix={self.mix} does not read")


def _check_numbers(name: str, values: Any, kind: type, allowed: str, *, least: float) -> None:
    if not isinstance(values, dict):
        auto = f", or {AUTO}" if name == "weights" else ""
        raise ValueError(f"objective.{name} is {values!r}; it must name parts and their {name}{auto}")
    for part, value in values.items():
        numbers = (int,) if kind is int else (int, float)
        if not isinstance(value, numbers) or isinstance(value, bool) or not least <= value < 1e6:
            raise ValueError(f"objective.{name}.{part} is {value!r}; it must be {allowed}")


PROJECTIONS = "projections"  # to the one space of all pairs, of each modality


def heads_of(parts: Mapping[str, Any]) -> dict[str, nn.Module]:
    """What is averaged beside the encoders of the parts, by names of the joint run; of a modality that several pairs
    have, the first one's projection.

    ValueError: spaces of several widths.
    """
    heads: dict[str, nn.Module] = {}
    space: dict[str, Any] = {}
    for name, part in parts.items():
        for key, module in part.student.items():
            if key == PROJECTIONS:
                space = {**module, **space}
            elif key != "encoder":
                heads[f"{name}_{key}"] = module
    widths = {layer.out_features for layer in space.values()}
    if len(widths) > 1:
        raise ValueError(
            f"objective.parts: projection_dim is {' and '.join(map(str, sorted(widths)))}; all pairs of a run are in "
            "one space: give one width"
        )
    return {**heads, PROJECTIONS: nn.ModuleDict(space)} if space else heads


def seen_by(modules: nn.ModuleDict | None, name: str, modalities: list[str]) -> nn.ModuleDict:
    """What a part sees of the student or the teacher: its encoder without other modalities' frontends, its heads."""
    if modules is None or not len(modules):
        return nn.ModuleDict()
    encoder: Any = modules["encoder"]
    heads = {key.removeprefix(f"{name}_"): module for key, module in modules.items() if key.startswith(f"{name}_")}
    if PROJECTIONS in modules and len(modalities) > 1:
        heads[PROJECTIONS] = modules[PROJECTIONS]
    return nn.ModuleDict({"encoder": of_modalities(encoder, modalities), **heads})


@contextmanager
def names_of(part: str) -> Iterator[None]:
    """Within it an error names settings as a joint config has them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"part {part}: {renamed(str(error), part)}") from error


def renamed(said: str, part: str) -> str:
    """An error about the settings of one modality, as those of a part."""
    names = {"data.": f"data.{part}.", "objective.": f"objective.parts.{part}.", "evaluate.": f"evaluate.{part}."}
    names |= {"run.probe.": f"run.probe.{part}.", "train.batch_size": f"train.batch_size.{part}"}
    for name, own in names.items():
        said = re.sub(rf"(?<![\w./]){re.escape(name)}(?!{re.escape(part)})", own.replace("\\", ""), said)
    return said
