"""What transformers' classes have in common."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel

from d2v.interop.renaming import Prefixes
from d2v.models.task_models import TaskModel

SETTINGS = {
    "hidden_size": "trunk.dim",
    "num_hidden_layers": "trunk.depth",
    "num_attention_heads": "trunk.num_heads",
    "intermediate_size": "trunk.mlp_dim",
    "layer_norm_eps": "trunk.norm_eps",
    "initializer_range": "trunk.init_std",
}
WORDS, LETTERS = ("query", "key", "value"), ("q_proj", "k_proj", "v_proj")  # what they call the projections
REQUIRED = {"hidden_act": "gelu"}
POST_NORM = {
    "trunk.pre_norm": ((False,), "its blocks are post-norm"),
    "trunk.qkv_bias": (("qkv",), "its queries, keys and values all have a bias"),
    "trunk.input_norm": ((True,), "it has a norm before the first block"),
    "trunk.final_norm": ((False,), "it has no norm after the last block"),
    "frontend.alibi": (("none",), "its attention has no bias (ALiBi)"),
}


class Head(NamedTuple):
    """A task model of ours, and how the config of a stock class says what ours does."""

    ours: type[TaskModel]
    names: Prefixes  # of the whole model, encoder's prefix and all
    read_settings: Callable[[Any], dict[str, Any]]  # their config -> task.* and head.num_labels
    write_settings: Callable[[dict[str, Any]], dict[str, Any]]  # our settings -> fields of their config


@dataclass(frozen=True)
class Kind:
    """A kind of stock model: its classes, and what differs between its settings and tensors and ours.

    Our settings are flat, by names such as trunk.dim, frontend.channels and task.dropout.
    """

    modality: str
    model: type[PreTrainedModel]  # the bare encoder's class
    bare: dict[str, Any]  # its arguments
    heads: Mapping[type, Head]  # the classes of tasks
    settings: dict[str, str]  # theirs -> ours, where the value is the same
    required: dict[str, Any]  # what theirs must be for ours to compute the same
    held: dict[str, tuple[tuple, str]]  # what ours may be, and why
    read_settings: Callable[[Any, dict[str, Tensor]], dict[str, Any]]  # their config and tensors -> our other settings
    write_settings: Callable[[dict[str, Any]], dict[str, Any]]  # our settings -> the other fields of their config
    names: Callable[[dict[str, Any]], Prefixes]  # of our settings: how tensors are called
    # tensors and our settings -> what tensors need beside a new name
    to_our_tensors: Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]
    to_their_tensors: Callable[[dict[str, Tensor], dict[str, Any]], dict[str, Tensor]]
    # a folder or Hub name and their config -> our settings that a preprocessor there says
    read_beside: Callable[[str, Any], dict[str, Any]]


def nothing_beside(source: str, config: Any) -> dict[str, Any]:
    """Of a kind whose preprocessor says nothing of the model."""
    return {}


def unchanged(state: dict[str, Tensor], ours: dict[str, Any]) -> dict[str, Tensor]:
    """Of a kind whose tensors differ from ours by nothing but their names."""
    return state


def classifier(
    config: Any, *, pooled_norm: bool = False, dense_dim: int = 0, dropout: float = 0.0, **others: Any
) -> dict[str, Any]:
    """The settings of a classifier's head, and its number of labels."""
    task = {"pooled_norm": pooled_norm, "dense_dim": dense_dim, "dropout": dropout, **others}
    return {**{f"task.{name}": value for name, value in task.items()}, "head.num_labels": config.num_labels}


def blocks(depth: int, prefix: str, parts: dict[str, str]) -> Prefixes:
    """Names of every block; `prefix` holds {n}, `parts` are theirs -> ours within a block."""
    prefixes = []
    for n in range(depth):
        prefixes += [(prefix.format(n=n) + old, f"trunk.blocks.{n}.{new}") for old, new in parts.items()]
    return prefixes


def projections(prefix: str, names: tuple[str, ...]) -> dict[str, str]:
    """Query, key and value, which ours has in one matrix."""
    return {f"{prefix}{name}.": f"attention.qkv.{name[0]}." for name in names}
