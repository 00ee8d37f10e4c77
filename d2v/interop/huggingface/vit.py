"""ViTModel and its task: images without data2vec's specifics, pre-norm, with absolute positions."""

import logging
from typing import Any

import torch
import transformers
from torch import Tensor

from d2v.interop.huggingface import shared
from d2v.interop.huggingface.shared import Head, Kind
from d2v.interop.renaming import Prefixes
from d2v.models.positions import sincos
from d2v.models.task_models import D2vForImageClassification

log = logging.getLogger(__name__)
MODALITY = "image"
MODEL = transformers.ViTModel
HEADS = {
    transformers.ViTForImageClassification: Head(
        D2vForImageClassification,
        [("classifier.", "head.out.")],
        lambda config: shared.classifier(config, pooling="class"),
        lambda ours: {},
    )
}
BARE = {"add_pooling_layer": False}
SETTINGS = shared.SETTINGS | {
    "num_channels": "frontend.channels",
    "hidden_dropout_prob": "trunk.dropout",
    "attention_probs_dropout_prob": "trunk.attention_dropout",
}
REQUIRED = shared.REQUIRED
PATCHES = {
    "frontend.backbone": (("",), "it embeds patches"),
    "trunk.pre_norm": ((True,), "its blocks are pre-norm"),
    "trunk.input_norm": ((False,), "it has no norm before the first block"),
    "frontend.class_token": ((True,), "it has a class token"),
}
MASK, POSITIONS = "embeddings.mask_token", "embeddings.position_embeddings"
HELD = PATCHES | {
    "frontend.positions": (("sincos", "learned"), "it adds positions to its patches"),
    "trunk.qkv_bias": (("qkv", "none"), "its queries, keys and values all have a bias, or none has"),
    "frontend.relative_bias": (
        (False,),
        "its attention has no bias; a Data2VecVisionModel has one, without biases of keys (model.trunk.qkv_bias=qv)",
    ),
    "trunk.layer_scale": ((0.0,), "its blocks have no layer scale"),
    "trunk.final_norm": ((True,), "it has a norm after the last block"),
}
EMBEDDINGS: Prefixes = [
    ("embeddings.cls_token", "frontends.image.class_token"),
    (MASK, "frontends.image.mask_token"),
    ("embeddings.patch_embeddings.projection.", "frontends.image.patch_embed."),
    (POSITIONS, "frontends.image.position_table"),
    ("layernorm.", "trunk.final_norm."),
]


def read_settings(config: Any, state: dict[str, Tensor]) -> dict[str, Any]:
    """A mask token is there only where a model in memory has one."""
    biases = {"trunk.qkv_bias": "qkv" if config.qkv_bias else "none", "frontend.relative_bias": False}
    return {
        **biases,
        "trunk.layer_scale": 0.0,
        "trunk.final_norm": True,
        "frontend.mask_token": MASK in state,
        **common(config, state),
    }


def common(config: Any, state: dict[str, Tensor]) -> dict[str, Any]:
    """Settings of images in both of transformers' classes. ValueError: images or patches that are no squares."""
    settings: dict[str, Any] = {"trunk.pre_norm": True, "trunk.input_norm": False, "frontend.positions": "none"}
    for name in ("image_size", "patch_size"):
        given = getattr(config, name)
        sides = [given] if isinstance(given, int) else [*given]
        if len(set(sides)) != 1:
            raise ValueError(f"{name} is {sides}; d2v reads square images in square patches")
        settings[f"frontend.{name}"] = sides[0]
    if POSITIONS in state:
        grid = settings["frontend.image_size"] // settings["frontend.patch_size"]
        given = state[POSITIONS].float().cpu().flatten(0, -2)
        is_fixed = torch.equal(given, _sincos(grid, config.hidden_size))
        settings["frontend.positions"] = "sincos" if is_fixed else "learned"
    return settings


def write_settings(ours: dict[str, Any]) -> dict[str, Any]:
    """Biases and sizes."""
    return {"qkv_bias": ours["trunk.qkv_bias"] == "qkv", "pooler_output_size": ours["trunk.dim"], **sides(ours)}


def sides(ours: dict[str, Any]) -> dict[str, Any]:
    """Sizes of images and patches."""
    return {name: ours[f"frontend.{name}"] for name in ("image_size", "patch_size")}


def names(ours: dict[str, Any]) -> Prefixes:
    """Theirs -> ours."""
    parts = {
        "attention.o_proj.": "attention.proj.",
        "layernorm_before.": "norm1.",
        "layernorm_after.": "norm2.",
        "mlp.": "mlp.",
    }
    return [
        *shared.blocks(ours["trunk.depth"], "layers.{n}.", shared.projections("attention.", shared.LETTERS) | parts),
        *EMBEDDINGS,
    ]


def to_our_tensors(state: dict[str, Tensor], ours: dict[str, Any]) -> dict[str, Tensor]:
    """Fixed positions are computed, not kept."""
    return {key: value for key, value in state.items() if key != POSITIONS or ours["frontend.positions"] != "sincos"}


def to_their_tensors(state: dict[str, Tensor], ours: dict[str, Any]) -> dict[str, Tensor]:
    """The mask token, which nothing reads after pretraining, stays behind."""
    if MASK in state:
        log.warning("ViTModel has no mask token: it is left out")
    return with_positions({key: value for key, value in state.items() if key != MASK}, ours)


def with_positions(state: dict[str, Tensor], ours: dict[str, Any]) -> dict[str, Tensor]:
    """Fixed positions become a table."""
    if ours["frontend.positions"] != "sincos":
        return state
    return {**state, POSITIONS: _sincos(ours["frontend.image_size"] // ours["frontend.patch_size"], ours["trunk.dim"])}


def _sincos(grid: int, dim: int) -> Tensor:
    """data2vec 2.0's, with zero for the class token, (1 + T, D).

    An empty tensor where the width does not allow them.
    """
    if dim % 4:
        return torch.empty(0)
    positions = sincos((grid, grid), dim, torch.device("cpu"))
    return torch.nn.functional.pad(positions, (0, 0, 1, 0))


KIND = Kind(
    modality=MODALITY,
    model=MODEL,
    bare=BARE,
    heads=HEADS,
    settings=SETTINGS,
    required=REQUIRED,
    held=HELD,
    read_settings=read_settings,
    write_settings=write_settings,
    names=names,
    to_our_tensors=to_our_tensors,
    to_their_tensors=to_their_tensors,
    read_beside=shared.nothing_beside,
)
