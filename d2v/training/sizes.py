"""What a run will need of memory, found without allocating any of it, and which setting is to blame if that is not
there."""

import copy
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import psutil
import torch
from torch import nn

from d2v.settings import default_of, with_inner
from d2v.types import View

MOMENTS = {"adamw": 2, "sgd": 1, "lars": 1}  # tensors that an optimizer keeps of each parameter
GB = 1e9


def check_memory(config: Any, make: Callable[[Any], nn.Module], device: torch.device) -> None:
    """ValueError: what `make` builds of a config, with gradients and moments, is larger than the memory of a device.

    The error names the setting which, at its default, would need least.
    """
    needed, there = _needed(config, make), memory_of(device)
    if needed <= there:
        return
    values = {name: getattr(section, name.rpartition(".")[2]) for name, (section, _) in _numbers(config).items()}
    larger = [name for name, (_, default) in _numbers(config).items() if values[name] > default]
    rest = {name: _needed_otherwise(config, make, name) for name in larger}
    name = min(rest, key=lambda one: rest[one], default="model.trunk.depth")
    raise ValueError(
        f"{name} is {values[name]}: weights, gradients, moments and what is remembered would need "
        f"{needed / GB:.3g} GB, and there are {there / GB:.3g} GB; lower it"
    )


def check_batch(config: Any, views: list[View], parts: int, device: torch.device) -> None:
    """ValueError: more micro-batches than samples, or inputs that with what each block keeps of them are larger than
    the memory of a device.

    `views`: of one sample. `parts`: micro-batches of a step, over all processes.
    """
    if parts > config.train.batch_size:
        raise ValueError(
            f"train.batch_size is {config.train.batch_size}, of {parts} micro-batches over all processes "
            "(train.accumulate): each has a sample"
        )
    trunk, rows = config.model.trunk, -(-config.train.batch_size // parts)
    one = sum(value.nbytes for view in views for value in view.inputs.values())
    tokens = sum(view.mask.hidden.numel() for view in views if view.mask is not None and view.mask.keep is None)
    needed, there = rows * (one + 2 * tokens * trunk.dim * trunk.depth), memory_of(device)
    if needed > there:
        raise ValueError(
            f"train.batch_size is {config.train.batch_size}: {rows} samples at once would need {needed / GB:.3g} GB, "
            f"and there are {there / GB:.3g} GB; lower it, or raise train.accumulate"
        )


def memory_of(device: torch.device) -> int:
    """Bytes of a device; of a CPU, those of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def _needed(config: Any, make: Callable[[Any], nn.Module]) -> int:
    """Bytes of weights, gradients, moments and buffers of what `make` builds."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        module = make(config)
    total = sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])
    trained = sum(parameter.nbytes for parameter in module.parameters() if parameter.requires_grad)
    return total + (1 + MOMENTS[config.train.optimizer]) * trained


def _needed_otherwise(config: Any, make: Callable[[Any], nn.Module], name: str) -> float:
    """The same with one setting at its default, or a part of what it is; infinite where none of these fits others."""
    changed = copy.deepcopy(config)
    section, default = _numbers(changed)[name]
    last = name.rpartition(".")[2]
    value = getattr(section, last)
    for other in (default, *(value // part for part in (1000, 100, 10, 2))):
        setattr(section, last, other)
        try:
            return _needed(changed, make)
        except (ValueError, RuntimeError):  # RuntimeError: torch's, of shapes
            continue
    return float("inf")


def _numbers(config: Any) -> dict[str, tuple[Any, int]]:
    """Each whole number of model, task and objective by its name: the dataclass that has it, and its default."""
    sections = {f"model.frontends.{name}": frontend for name, frontend in config.model.frontends.items()}
    sections["model.trunk"] = config.model.trunk
    sections |= {name: vars(config)[name] for name in ("task", "objective") if name in vars(config)}
    found = {}
    for where, section in with_inner(sections).items():
        for one in fields(section):
            if type(getattr(section, one.name)) is int:
                found[f"{where}.{one.name}"] = (section, default_of(one))
    return found
