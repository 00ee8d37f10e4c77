"""The reference's checkpoints as Objectives and back, no fairseq needed.

Here are the settings and names of 1.0's speech and text. Containers: a .pt file, or a dict
{"cfg": {"model": ..., "task": ...}, "model": state dict}, with the teacher nested as `_ema`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from d2v import plugins
from d2v.files import written
from d2v.interop.fairseq import beit
from d2v.interop.fairseq import data2vec2 as fairseq2
from d2v.interop.fairseq.settings import conv_layers, read_task, spec_of, targets, targets_of, task_of
from d2v.interop.fidelity import check_same
from d2v.interop.renaming import (
    Names,
    Prefixes,
    encoder_of,
    fill_objective,
    original,
    plain,
    read_checkpoint,
    require,
    settings_at,
    without,
)
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.trunk_config import TrunkConfig
from d2v.objectives.common.objective import Objective
from d2v.objectives.data2vec import OF_TOKENS, Data2Vec
from d2v.objectives.data2vec2 import Data2Vec2

# what a setting of the reference must be, because nothing else was ever published with data2vec
REQUIRED = {
    "data2vec_audio": {
        "extractor_mode": "layer_norm",
        "conv_bias": False,
        "activation_fn": "gelu",
        "layer_type": "transformer",
        "quantize_targets": False,
        "quantize_input": False,
        "target_glu": False,
        "pos_enc_type": "abs",
        "final_dim": 0,
    },
    "data2vec_text": {
        "transformer.activation_fn": "gelu",
        "transformer.encoder.learned_pos": True,
        "transformer.no_scale_embedding": True,
    },
}


def _targets(cfg: dict, quirks: bool) -> dict[str, Any]:
    """The targets' settings; the quirk of norms over padding only where a norm reads the other tokens."""
    found = targets(cfg, "ffn")
    of_tokens = {*found["layer_norms"], *found["final_norms"]} & {*OF_TOKENS}
    return {**found, "norm_over_padding": quirks and bool(of_tokens)}


def load_fairseq(checkpoint: str | Path | dict, reference_quirks: bool = False) -> Objective:
    """The objective of a data2vec_audio, data2vec_text or data2vec_multi checkpoint, or of one of the BEiT fork (images
    of 1.0).

    `reference_quirks` computes what the reference computes where that is not the paper's sense: instance norm, the
    position layers and 2.0's decoder count padded frames, and 2.0's blocks read padded tokens that nothing has zeroed.
    (The bug of its text teacher, fairseq issue 4881, is in what its task hands to the model: give a second view to
    reproduce it, as the text modality's `reference_teacher_input` does.) ValueError: another architecture or setting,
    or the first key that is missing, left over, or of another shape; nothing is half loaded.
    """
    checkpoint = checkpoint if isinstance(checkpoint, dict) else read_checkpoint(Path(checkpoint))
    checkpoint = without(
        checkpoint,
        lambda key: key not in ("cfg", "model", "model_ema"),
        "so that the optimizer and the step start anew",
    )
    if beit.is_beit(checkpoint):
        return beit.load(checkpoint)
    if not isinstance(checkpoint.get("cfg"), dict) or not isinstance(checkpoint.get("model"), dict):
        raise ValueError(
            "a fairseq checkpoint holds 'cfg' and 'model'; "
            f"this one holds {', '.join(map(str, checkpoint)) or 'nothing'}"
        )
    cfg = {"model": {}, **{key: value for key, value in checkpoint["cfg"].items() if value is not None}}
    model, state = plain(settings_at(cfg, "model", "cfg")), dict(checkpoint["model"])
    kind = model.get("_name") or _guess(state)
    if kind == "data2vec_multi":
        objective = fairseq2.load(model, state, reference_quirks)
    elif kind in REQUIRED:
        require(model, REQUIRED[kind])
        convert = {"data2vec_audio": _speech, "data2vec_text": _text}[kind]
        objective = convert(model, state, reference_quirks)
    else:
        raise ValueError(f"cfg.model._name is {kind!r}; this reads {', '.join(REQUIRED)}, data2vec_multi")
    read_task(objective, cfg.get("task"))
    return objective


def save_fairseq(objective: Objective, path: str | Path) -> None:
    """Writes what `load_fairseq` reads, in the reference's own format.

    ValueError: an objective or a setting that the reference does not have. What would be written is read back first: a
    file that exists holds the whole objective (of images of 1.0: without top_k and the EMA's rates).
    """
    modality = encoder_of(objective)[1]
    writers: dict[tuple[type, str], Callable[[Any], dict]] = {
        (Data2Vec2, name): fairseq2.save for name in fairseq2.NAMES
    }
    writers |= {(Data2Vec, "speech"): save, (Data2Vec, "text"): save, (Data2Vec, "image"): beit.save}
    write = writers.get((type(objective), modality))
    if write is None:
        raise ValueError(f"fairseq has no format for {type(objective).__name__} of {modality}")
    checkpoint = _checked(objective, write)
    with written(Path(path)) as temporary:
        torch.save(checkpoint, temporary)


def _checked(objective: Any, write: Callable[[Any], dict]) -> dict:
    """What `write` makes of the objective. ValueError: read back, it is another one."""
    try:
        checkpoint = write(objective)
    except KeyError as error:
        raise ValueError(
            f"fairseq's format cannot hold this objective: it has no {error.args[0]}, which the format needs"
        ) from None
    with torch.random.fork_rng(devices=[]):  # building an objective draws numbers that a run in progress would miss
        try:
            back = load_fairseq(checkpoint)
        except ValueError as error:
            raise ValueError(
                f"fairseq's format cannot hold this objective: what it holds is refused, as {error}"
            ) from None
    check_same(objective, back, beit.UNHELD if beit.is_beit(checkpoint) else ())
    return checkpoint


def _speech(cfg: dict, state: dict, quirks: bool) -> Objective:
    width, kernels, strides = conv_layers(cfg["conv_feature_layers"], "cfg.model.conv_feature_layers")
    depth = int(cfg["pos_conv_depth"])
    if depth < 2:
        raise ValueError(f"cfg.model.pos_conv_depth is {depth}; data2vec stacks several layers (5)")
    frontend = {
        "conv_dim": width,
        "conv_kernels": kernels,
        "conv_strides": strides,
        "pos_kernel": max(3, int(cfg["conv_pos"]) // depth),
        "pos_depth": depth,
        "pos_groups": int(cfg["conv_pos_groups"]),
        "reference_padding": quirks,
    }
    pre_norm = bool(cfg.get("layer_norm_first", False))
    trunk = TrunkConfig(
        depth=cfg["encoder_layers"],
        dim=cfg["encoder_embed_dim"],
        num_heads=cfg["encoder_attention_heads"],
        mlp_dim=cfg["encoder_ffn_embed_dim"],
        pre_norm=pre_norm,
        input_norm=not pre_norm,
        final_norm=pre_norm,
        dropout=cfg.get("dropout", 0.1),
        attention_dropout=cfg.get("attention_dropout", 0.1),
        activation_dropout=cfg.get("activation_dropout", 0.0),
        layer_drop=cfg.get("encoder_layerdrop", 0.0),
    )
    shared = ["frontends.speech." + part for part in ("extractor", "norm", "projection", "mask_token")]
    if cfg.get("ema_layers_only", False):
        shared.append("frontends.speech.positions_conv")
    objective = _build(
        "speech",
        frontend,
        trunk,
        {**_targets(cfg, quirks), "shared": shared, "feed_tokens": True},
    )
    teacher = state.pop("_ema", None)
    state = {re.sub(r"^final_proj\.0\.", "final_proj.", key): value for key, value in state.items()}
    fill_objective(objective, objective.predictor, names(objective), state, teacher)
    return objective


def _text(cfg: dict, state: dict, quirks: bool) -> Objective:
    transformer = settings_at(cfg, "transformer")
    encoder = settings_at(transformer, "encoder", "cfg.model.transformer")
    if encoder.get("normalize_before", False):
        raise ValueError("cfg.model.transformer.encoder.normalize_before is True; data2vec's text encoder is post-norm")
    state = {
        re.sub(r"^decoder\.", "encoder.", k).replace(".emb_layer_norm.", ".layernorm_embedding."): v
        for k, v in state.items()
    }
    words = state.get("encoder.sentence_encoder.embed_tokens.weight")
    positions = state.get("encoder.sentence_encoder.embed_positions.weight")
    if words is None or positions is None:
        raise ValueError(
            "the first missing key is encoder.sentence_encoder.embed_tokens.weight or embed_positions.weight"
        )
    # fairseq's dictionary: <s> 0, <pad> 1, </s> 2, <unk> 3, words, and <mask> appended last
    frontend = {"vocab_size": len(words), "mask_token_id": len(words) - 1, "max_positions": len(positions) - 2}
    trunk = TrunkConfig(
        depth=encoder["layers"],
        dim=encoder["embed_dim"],
        num_heads=encoder["attention_heads"],
        mlp_dim=encoder["ffn_embed_dim"],
        dropout=transformer.get("dropout", 0.1),
        attention_dropout=transformer.get("attention_dropout", 0.1),
        activation_dropout=transformer.get("activation_dropout", 0.0) or transformer.get("relu_dropout", 0.0),
        layer_drop=encoder.get("layerdrop", 0.0),
    )
    shared = ["frontends.text", "trunk.input_norm"] if cfg.get("ema_transformer_layers_only", False) else []
    objective = _build(
        "text",
        frontend,
        trunk,
        {
            **_targets(cfg, quirks),
            "head_layers": int(cfg.get("head_layers", 1)),
            "shared": shared,
        },
    )
    teacher = state.pop("encoder._ema", None)
    state = {k: v for k, v in state.items() if not k.endswith(".version")}
    state = without(
        state,
        lambda key: key.startswith(("encoder.lm_head.", "classification_heads.")),
        "which has no place in pretraining",
    )
    if teacher is not None:
        teacher = {k: v for k, v in teacher.items() if k != "version"}
    fill_objective(objective, objective.predictor, names(objective), state, teacher)
    return objective


def save(objective: Data2Vec) -> dict:
    """The checkpoint that `load_fairseq` reads of a 1.0 objective of speech or text.

    ValueError: a setting that the reference does not have.
    """
    (encoder, modality), prefixes = encoder_of(objective), names(objective)
    student = original(encoder.state_dict(), prefixes.student) | original(
        objective.predictor.state_dict(), prefixes.head
    )
    teacher = original(objective.teacher["encoder"].state_dict(), prefixes.teacher)
    if modality == "text":  # a buffer of fairseq's encoder
        student["encoder.sentence_encoder.version"], teacher["version"] = torch.tensor([3.0]), torch.tensor([3.0])
    settings = (_text_settings if modality == "text" else _speech_settings)(objective)
    common = {**targets_of(objective.config), **settings}
    return {
        "cfg": {"model": common, "task": task_of(encoder.frontends[modality].config)},
        "model": {**student, "encoder._ema" if modality == "text" else "_ema": teacher},
    }


def _speech_settings(objective: Data2Vec) -> dict:
    encoder = encoder_of(objective)[0]
    frontend, trunk = encoder.frontends["speech"].config, encoder.trunk.config
    return {
        **REQUIRED["data2vec_audio"],
        "_name": "data2vec_audio",
        "conv_feature_layers": spec_of(frontend),
        "conv_pos": frontend.pos_kernel * frontend.pos_depth,
        "pos_conv_depth": frontend.pos_depth,
        "conv_pos_groups": frontend.pos_groups,
        "layer_norm_first": trunk.pre_norm,
        "encoder_layers": trunk.depth,
        "encoder_embed_dim": trunk.dim,
        "encoder_attention_heads": trunk.num_heads,
        "encoder_ffn_embed_dim": trunk.mlp_dim,
        "dropout": trunk.dropout,
        "attention_dropout": trunk.attention_dropout,
        "activation_dropout": trunk.activation_dropout,
        "encoder_layerdrop": trunk.layer_drop,
        "ema_layers_only": objective.is_copied("encoder.frontends.speech.positions_conv.0.weight"),
    }


def _text_settings(objective: Data2Vec) -> dict:
    trunk = encoder_of(objective)[0].trunk.config
    encoder = {
        "layers": trunk.depth,
        "embed_dim": trunk.dim,
        "attention_heads": trunk.num_heads,
        "ffn_embed_dim": trunk.mlp_dim,
        "layerdrop": trunk.layer_drop,
        "normalize_before": False,
        "learned_pos": True,
    }
    transformer = {
        "activation_fn": "gelu",
        "no_scale_embedding": True,
        "dropout": trunk.dropout,
        "attention_dropout": trunk.attention_dropout,
        "activation_dropout": trunk.activation_dropout,
        "encoder": encoder,
    }
    return {
        "_name": "data2vec_text",
        "head_layers": objective.config.head_layers,
        "ema_transformer_layers_only": objective.is_copied("encoder.frontends.text.tokens.weight"),
        "transformer": transformer,
    }


def names(objective: Data2Vec) -> Names:
    """The reference's names of this objective's parts."""
    encoder, modality = encoder_of(objective)
    prefix = "encoder.sentence_encoder." if modality == "text" else "encoder."
    prefixes: Prefixes = []
    for number in range(encoder.trunk.config.depth):
        old, new = f"{prefix}layers.{number}.", f"trunk.blocks.{number}."
        prefixes += [(f"{old}self_attn.{part}_proj.", f"{new}attention.qkv.{part}.") for part in "qkv"]
        prefixes += [
            (f"{old}self_attn.out_proj.", f"{new}attention.proj."),
            (f"{old}self_attn_layer_norm.", f"{new}norm1."),
        ]
        prefixes += [(f"{old}fc{part}.", f"{new}mlp.fc{part}.") for part in "12"] + [
            (f"{old}final_layer_norm.", f"{new}norm2.")
        ]
    if modality == "text":
        parts = {"embed_tokens.": "frontends.text.tokens.", "embed_positions.": "frontends.text.position_table."}
        prefixes += [(prefix + old, new) for old, new in {**parts, "layernorm_embedding.": "trunk.input_norm."}.items()]
        head = [(f"encoder.regression_head.{2 * n}.", f"layers.{2 * n}.") for n in range(objective.config.head_layers)]
        return Names(prefixes, [(old.removeprefix(prefix), new) for old, new in prefixes], head)
    frontend = encoder.frontends[modality]
    prefixes += [
        (f"encoder.pos_conv.{n}.0.", f"frontends.speech.positions_conv.{n}.")
        for n in range(len(frontend.positions_conv))
    ]
    prefixes += [
        ("encoder.layer_norm.", "trunk.final_norm." if encoder.trunk.config.final_norm else "trunk.input_norm.")
    ]
    teacher = [(old.removeprefix(prefix), new) for old, new in prefixes]
    parts = {"mask_emb": "mask_token", "layer_norm.": "norm.", "post_extract_proj.": "projection."}
    prefixes += [(old, f"frontends.speech.{new}") for old, new in parts.items()]
    for number in range(len(frontend.extractor.layers)):
        old, new = f"feature_extractor.conv_layers.{number}.", f"frontends.speech.extractor.layers.{number}."
        prefixes += [(f"{old}0.", new), (f"{old}2.1.", f"{new}norm.")]
    return Names(prefixes, teacher, [("final_proj.", "layers.0.")])


def _build(modality: str, frontend: dict, trunk: TrunkConfig, settings: dict) -> Data2Vec:
    plugin = plugins.load("d2v.objectives", "data2vec")
    frontend_config = plugins.load("d2v.modalities", modality).FrontendConfig(**frontend)
    return plugin.build(
        D2vModel(D2vConfig(frontends={modality: frontend_config}, trunk=trunk)), plugin.Config(**settings)
    )


def _guess(state: dict) -> str | None:
    """The model's kind by its keys, for configs that do not name it."""
    if any(key.startswith("encoder.sentence_encoder.") for key in state):
        return "data2vec_text"
    if any(key.startswith("modality_encoders.") for key in state):
        return "data2vec_multi"
    return "data2vec_audio" if "post_extract_proj.weight" in state and "mask_emb" in state else None
