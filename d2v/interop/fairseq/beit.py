"""Images of data2vec 1.0: checkpoints of the reference's BEiT fork, {"model": ..., "model_ema": ...}.

Sizes are read off the tensors. What the tensors do not say (targets, loss, rates) is the published recipe.
"""

from math import isqrt
from typing import Any

from torch import Tensor

from d2v import plugins
from d2v.interop.renaming import Names, Prefixes, encoder_of, fill_objective, original
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.trunk_config import TrunkConfig
from d2v.objectives.data2vec import Data2Vec

TABLE = "rel_pos_bias.relative_position_bias_table"
INDEX = "rel_pos_bias.relative_position_index"
NEEDED = {"cls_token": 3, "patch_embed.proj.weight": 4, TABLE: 2, "blocks.0.mlp.fc1.weight": 2}  # and their dimensions
# chosen on the fork's command line; other targets and losses than the published are not written
UNHELD = ("objective.top_k", "objective.ema_")
# what a setting of ours must be for the tensors to have these names and shapes
REQUIRED = {
    "model.frontends.image": {
        "relative_bias": True,
        "bias_layers": 1,
        "class_token": True,
        "positions": "none",
        "mask_token": True,
    },
    "model.trunk": {"pre_norm": True, "qkv_bias": "qv", "input_norm": False, "final_norm": True},
    "objective": {"head_layers": 1},
}


def is_beit(checkpoint: dict) -> bool:
    """Whether this is such a checkpoint: no settings, and patches among the tensors."""
    state = checkpoint.get("model")
    return "cfg" not in checkpoint and isinstance(state, dict) and "patch_embed.proj.weight" in state


def load(checkpoint: dict) -> Data2Vec:
    """The objective with student, teacher (`model_ema`, if there is one) and predictor.

    ValueError: the first missing, misfit or left-over key.
    """
    state, teacher = dict(checkpoint["model"]), checkpoint.get("model_ema")
    for key, dimensions in NEEDED.items():
        if not isinstance(state.get(key), Tensor):
            raise ValueError(
                f"model is incomplete: it has no key {key}; the pretraining checkpoint of the BEiT fork has it"
            )
        if state[key].ndim != dimensions:
            raise ValueError(
                f"model has {key} of shape {tuple(state[key].shape)}; it must have {dimensions} dimensions"
            )
    objective = _build(state)
    state = _without_index(state)
    if teacher is not None:  # the predictor has no teacher
        teacher = {key: value for key, value in _without_index(teacher).items() if not key.startswith("lm_head.")}
    fill_objective(objective, objective.predictor, names(objective), state, teacher)
    return objective


def save(objective: Data2Vec) -> dict:
    """The checkpoint that `load` reads; its `model_ema` has the student's head, as ours is not averaged.

    ValueError: see REQUIRED.
    """
    encoder, prefixes = encoder_of(objective)[0], names(objective)
    configs = {
        "model.frontends.image": encoder.frontends["image"].config,
        "model.trunk": encoder.trunk.config,
        "objective": objective.config,
    }
    for part, wanted in REQUIRED.items():
        for name, value in wanted.items():
            given = getattr(configs[part], name)
            if given != value:
                raise ValueError(
                    f"fairseq's format cannot hold {part}.{name}={given}: images of data2vec 1.0 have {value}"
                )
    head = original(objective.predictor.state_dict(), prefixes.head)
    checkpoint = {}
    for name, module in (("model", encoder), ("model_ema", objective.teacher["encoder"])):
        state = original(module.state_dict(), prefixes.student) | {key: value.clone() for key, value in head.items()}
        state["mask_token"] = state["mask_token"].view(1, 1, -1)
        checkpoint[name] = {**state, INDEX: encoder.frontends["image"].bias_index().clone()}
    return checkpoint


def names(objective: Data2Vec) -> Names:
    """The reference's names of this objective's parts."""
    ours = "frontends.image."
    student: Prefixes = [
        (TABLE, f"{ours}bias_table"),
        ("cls_token", f"{ours}class_token"),
        ("mask_token", f"{ours}mask_token"),
    ]
    student += [("patch_embed.proj.", f"{ours}patch_embed."), ("norm.", "trunk.final_norm.")]
    for number in range(encoder_of(objective)[0].trunk.config.depth):
        old, new = f"blocks.{number}.", f"trunk.blocks.{number}."
        student += [(f"{old}{part}.", f"{new}{part}.") for part in ("norm1", "norm2", "mlp")]
        student += [
            (f"{old}attn.", f"{new}attention."),
            (f"{old}gamma_1", f"{new}scale1"),
            (f"{old}gamma_2", f"{new}scale2"),
        ]
    return Names(student, student, [("lm_head.", "layers.0.")])


def _without_index(state: dict) -> dict:
    """The index is computed here; the averaged one of a teacher is not even right."""
    return {key: value for key, value in state.items() if key != INDEX}


def _build(state: dict[str, Tensor]) -> Data2Vec:
    dim, channels, patch, _ = state["patch_embed.proj.weight"].shape
    num_offsets, heads = state[TABLE].shape
    side = (isqrt(num_offsets - 3) + 1) // 2
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    large = depth > 12
    trunk = TrunkConfig(
        depth=depth,
        dim=dim,
        num_heads=heads,
        mlp_dim=len(state["blocks.0.mlp.fc1.weight"]),
        pre_norm=True,
        layer_scale=1e-5 if large else 1e-4,
        qkv_bias="qv",
        norm_eps=1e-6,
        input_norm=False,
        final_norm=True,
        attention_dropout=0.15 if large else 0.05,
        drop_path=0.2 if large else 0.25,
        init="depth_scaled",
    )
    frontend: dict[str, Any] = {"image_size": side * patch, "patch_size": patch, "channels": channels}
    plugin = plugins.load("d2v.objectives", "data2vec")
    settings = plugin.Config(
        top_k=min(6, depth),
        layers="block",
        layer_norms=["layer"],
        final_norms=["layer"],
        loss_beta=2.0,
        loss_scale="mean",
        head_init="trunk",
        ema_decay=0.9998,
        ema_end_decay=0.9998,
        ema_anneal_steps=1,
    )
    config = plugins.load("d2v.modalities", "image").FrontendConfig(**frontend)
    return plugin.build(D2vModel(D2vConfig(frontends={"image": config}, trunk=trunk)), settings)
