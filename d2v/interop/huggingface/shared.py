"""What transformers' classes have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple

from d2v.interop.renaming import Table
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
    """A task model of ours, and how a stock class writes the same."""

    ours: type[TaskModel]
    names: Table  # of the whole model, encoder's prefix and all
    read: Callable[[Any], dict[str, Any]]  # their config -> task.* and head.num_labels
    write: Callable[[dict[str, Any]], dict[str, Any]]  # our settings -> fields of their config


def classifier(
    config: Any, *, pooled_norm: bool = False, dense_dim: int = 0, dropout: float = 0.0, **others: Any
) -> dict[str, Any]:
    """The settings of a classifier's head, and its number of labels."""
    task = {"pooled_norm": pooled_norm, "dense_dim": dense_dim, "dropout": dropout, **others}
    return {**{f"task.{name}": value for name, value in task.items()}, "head.num_labels": config.num_labels}


def blocks(depth: int, prefix: str, parts: dict[str, str]) -> Table:
    """Names of every block; `prefix` holds {n}, `parts` are theirs -> ours within a block."""
    return [(prefix.format(n=n) + old, f"trunk.blocks.{n}.{new}") for n in range(depth) for old, new in parts.items()]


def projections(prefix: str, names: tuple[str, ...]) -> dict[str, str]:
    """Query, key and value, which ours has in one matrix."""
    return {f"{prefix}{name}.": f"attention.qkv.{name[0]}." for name in names}
