"""Data2VecVisionModel and its tasks: images as in BEiT, pre-norm, without a key bias."""

from typing import Any

import torch
import transformers
from torch import Tensor

from d2v.interop.huggingface import shared, vit
from d2v.interop.huggingface.shared import Head, Kind
from d2v.interop.renaming import Prefixes
from d2v.models.task_models import D2vForImageClassification

MODALITY = "image"
MODEL = transformers.Data2VecVisionModel
HEADS = {
    transformers.Data2VecVisionForImageClassification: Head(
        D2vForImageClassification,
        [("classifier.", "head.out."), ("data2vec_vision.pooler.layernorm.", "head.norm.")],
        lambda config: shared.classifier(
            config, pooling="mean" if config.use_mean_pooling else "class", pooled_norm=config.use_mean_pooling
        ),
        lambda ours: {},
    )
}
BARE: dict[str, Any] = {}
SETTINGS = vit.SETTINGS | {
    "use_mask_token": "frontend.mask_token",
    "drop_path_rate": "trunk.drop_path",
}
REQUIRED = shared.REQUIRED
HELD = vit.PATCHES | {"trunk.qkv_bias": (("qv",), "its keys have no bias")}
SHARED_BIAS = "encoder.relative_position_bias.relative_position_bias_table"
BLOCK_BIAS = "encoder.layer.{n}.attention.attention.relative_position_bias.relative_position_bias_table"


def read_settings(config: Any, state: dict[str, Tensor]) -> dict[str, Any]:
    """ValueError: a bias for all blocks and one for each at once."""
    one_bias, bias_each = config.use_shared_relative_position_bias, config.use_relative_position_bias
    if one_bias and bias_each:
        raise ValueError(
            "use_shared_relative_position_bias and use_relative_position_bias are both True; "
            "d2v has one bias for all blocks or one each"
        )
    return {
        "frontend.relative_bias": one_bias or bias_each,
        "frontend.bias_layers": config.num_hidden_layers if bias_each else 1,
        "trunk.qkv_bias": "qv",
        "trunk.final_norm": not config.use_mean_pooling,
        **vit.common(config, state),
        "trunk.layer_scale": config.layer_scale_init_value,
    }


def write_settings(ours: dict[str, Any]) -> dict[str, Any]:
    """Which of its optional parts it has."""
    layers = ours["frontend.bias_layers"]
    return {
        "use_shared_relative_position_bias": ours["frontend.relative_bias"] and layers == 1,
        "use_relative_position_bias": ours["frontend.relative_bias"] and layers > 1,
        "use_absolute_position_embeddings": ours["frontend.positions"] != "none",
        "use_mean_pooling": not ours["trunk.final_norm"],
        "layer_scale_init_value": ours["trunk.layer_scale"],
        **vit.sides(ours),
    }


def names(ours: dict[str, Any]) -> Prefixes:
    """Theirs -> ours."""
    prefixes = shared.blocks(
        ours["trunk.depth"],
        "encoder.layer.{n}.",
        shared.projections("attention.attention.", shared.WORDS)
        | {
            "attention.attention.query.bias": "attention.q_bias",
            "attention.attention.value.bias": "attention.v_bias",
            "attention.output.dense.": "attention.proj.",
            "layernorm_before.": "norm1.",
            "layernorm_after.": "norm2.",
            "intermediate.dense.": "mlp.fc1.",
            "output.dense.": "mlp.fc2.",
            "lambda_1": "scale1",
            "lambda_2": "scale2",
        },
    )
    return [*prefixes, (SHARED_BIAS, "frontends.image.bias_table"), *vit.EMBEDDINGS]


def to_our_tensors(state: dict[str, Tensor], ours: dict[str, Any]) -> dict[str, Tensor]:
    """The biases that each block has become one tensor."""
    layers = ours["frontend.bias_layers"]
    if layers > 1:
        keys = [BLOCK_BIAS.format(n=n) for n in range(layers)]
        others = {key: value for key, value in state.items() if key not in keys}
        state = {**others, SHARED_BIAS: torch.stack([state[key] for key in keys])}
    return vit.to_our_tensors(state, ours)


def to_their_tensors(state: dict[str, Tensor], ours: dict[str, Any]) -> dict[str, Tensor]:
    """The inverse of `to_our_tensors`."""
    if ours["frontend.bias_layers"] > 1:
        biases = {BLOCK_BIAS.format(n=n): bias for n, bias in enumerate(state[SHARED_BIAS])}
        state = {**{key: value for key, value in state.items() if key != SHARED_BIAS}, **biases}
    return vit.with_positions(state, ours)


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
