"""fairseq's data2vec 2.0 checkpoints (data2vec_multi, one modality): their settings and names as ours.

Names of parts: arXiv 2212.07525's code, `modality_encoders.<MODALITY>` and `blocks`; the teacher is nested as `_ema`.
"""

from typing import Any

import torch

from d2v import plugins
from d2v.interop.fairseq.settings import conv_layers, spec_of, targets, targets_of_2, task_of
from d2v.interop.renaming import Names, Prefixes, encoder_of, fill_objective, original, require, settings_at, without
from d2v.models.configuration import D2vConfig
from d2v.models.encoder import D2vModel
from d2v.models.trunk_config import TrunkConfig
from d2v.objectives.data2vec2 import Data2Vec2

# ours -> theirs
NAMES = {"image": "IMAGE", "speech": "AUDIO", "text": "TEXT"}
SECTIONS = {"image": "image", "speech": "audio", "text": "text"}
# what a setting of the reference must be, because nothing else was ever published
REQUIRED = {
    "layer_norm_first": False,
    "norm_affine": True,
    "dropout_input": 0.0,
    "activation_dropout": 0.0,
    "recon_loss": 0.0,
    "d2v_loss": 1.0,
    "shared_decoder": None,
    "skip_ema": False,
}
REQUIRED_OF_ENCODER = {
    "encoder_zero_mask": True,
    "local_grad_mult": 1.0,
    "learned_alibi": False,
    "keep_masked_pct": 0.0,
    "decoder.add_positions_masked": False,
    "decoder.add_positions_all": False,
}
REQUIRED_OF = {
    "image": {
        "use_alibi_encoder": False,
        "fixed_positions": True,
        "transformer_decoder": False,
        "enc_dec_transformer": False,
    },
    "speech": {"num_extra_tokens": 0, "alibi_scale": 1.0, "extractor_mode": "layer_norm", "conv_pos_pre_ln": False},
    "text": {
        "num_extra_tokens": 0,
        "use_alibi_encoder": False,
        "prenet_depth": 0,
        "learned_pos": True,
        "no_scale_embedding": True,
        "layernorm_embedding": True,
        "no_token_positional_embeddings": False,
    },
}


def load(cfg: dict, state: dict, quirks: bool) -> Data2Vec2:
    """The objective with student, teacher and decoder. ValueError: as load_fairseq."""
    modality = _modality(state)
    name = SECTIONS[modality]
    encoder_cfg = settings_at(settings_at(cfg, "modalities"), name, "cfg.model.modalities")
    settings_at(encoder_cfg, "decoder", f"cfg.model.modalities.{name}")
    require(cfg, REQUIRED)
    require(encoder_cfg, REQUIRED_OF_ENCODER | REQUIRED_OF[modality], f"cfg.model.modalities.{name}")
    state, teacher = _old_names(state), state.get("_ema")
    objective = _build(modality, cfg, encoder_cfg, state, quirks)
    state = _simplified(state, objective)
    if teacher is not None:
        teacher = _simplified(teacher, objective)
    fill_objective(objective, objective.decoder, names(objective), state, teacher)
    return objective


def names(objective: Data2Vec2) -> Names:
    """The reference's names of this objective's parts."""
    (encoder, modality), depth = encoder_of(objective), objective.config.decoder.head_layers
    theirs = f"modality_encoders.{NAMES[modality]}."
    blocks: Prefixes = []
    for number in range(encoder.trunk.config.depth):
        main = number - encoder.trunk.config.prenet_depth
        old = f"blocks.{main}." if main >= 0 else f"{theirs}context_encoder.blocks.{number}."
        new = f"trunk.blocks.{number}."
        blocks += [(f"{old}{part}.", f"{new}{part}.") for part in ("norm1", "norm2", "mlp")]
        blocks += [(f"{old}attn.", f"{new}attention.")]
    student = [
        *blocks,
        (f"{theirs}context_encoder.norm.", "trunk.input_norm."),
        *_frontend_names(encoder, modality, theirs),
    ]
    decoder = [
        (f"{theirs}decoder.blocks.{number}.0.", f"layers.{number}.conv.")
        for number in range(len(objective.decoder.layers))
    ]
    for n in range(depth):
        place = f"{2 * n}." if depth > 1 else ""  # of one layer, proj is the layer itself
        decoder += [(f"{theirs}decoder.proj.{place}", f"head.{2 * n}.")]
    # without what the teacher shares; that of text is the list of blocks alone
    shared = tuple(f"{part}." for part in objective.config.shared)
    teacher = [(old, new) for old, new in student if not new.startswith(shared)]
    if modality == "text":
        teacher = [(old.removeprefix("blocks."), new) for old, new in blocks]
    return Names(student, teacher, decoder)


def save(objective: Data2Vec2) -> dict:
    """The checkpoint that `load` reads. ValueError: a setting that the reference does not have."""
    (encoder, modality), prefixes = encoder_of(objective), names(objective)
    student = original(encoder.state_dict(), prefixes.student) | original(objective.decoder.state_dict(), prefixes.head)
    teacher = original(objective.teacher["encoder"].state_dict(), prefixes.teacher)
    theirs = f"modality_encoders.{NAMES[modality]}."
    for state in (student, teacher) if modality == "image" else ():
        state[f"{theirs}fixed_positional_encoder.positions"] = _positions(encoder)[None]
    for state in (student, teacher):
        key = f"{theirs}alibi_scale"
        if key in state:
            layers = encoder.frontends[modality].config.alibi_layers
            state[key] = state[key].view(layers, 1, -1, 1, 1)
    task = task_of(encoder.frontends[modality].config)
    return {"cfg": {"model": _settings_of(objective), "task": task}, "model": {**student, "_ema": teacher}}


def _settings_of(objective: Data2Vec2) -> dict[str, Any]:
    model, modality = encoder_of(objective)
    config, trunk, frontend = objective.config, model.trunk.config, model.frontends[modality].config
    input_dropout = trunk.dropout if trunk.input_dropout is None else trunk.input_dropout
    encoder = {
        **REQUIRED_OF_ENCODER,
        **REQUIRED_OF[modality],
        "type": NAMES[modality],
        "prenet_depth": trunk.prenet_depth,
        "prenet_layerdrop": trunk.layer_drop if trunk.prenet_layer_drop is None else trunk.prenet_layer_drop,
        "prenet_dropout": 0.0 if modality == "text" else input_dropout,
        "ema_local_encoder": not config.feed_tokens,
        "mask_noise_std": config.decoder.noise,
        "decoder": {
            "decoder_dim": config.decoder.dim,
            "decoder_layers": config.decoder.depth,
            "decoder_kernel": config.decoder.kernel,
            "decoder_groups": config.decoder.groups,
            "decoder_residual": config.decoder.residual,
            "projection_layers": config.decoder.head_layers,
            "projection_ratio": config.decoder.head_ratio,
            "input_dropout": config.decoder.dropout,
        },
        **{"image": _image_of, "speech": _speech_of, "text": _text_of}[modality](frontend),
    }
    nested = {key: value for key, value in encoder.items() if "." not in key}
    return {
        **REQUIRED,
        **targets_of_2(config),
        "_name": "data2vec_multi",
        "supported_modality": NAMES[modality],
        "depth": trunk.depth - trunk.prenet_depth,
        "embed_dim": trunk.dim,
        "num_heads": trunk.num_heads,
        "mlp_ratio": trunk.mlp_dim / trunk.dim,
        "norm_eps": trunk.norm_eps,
        "encoder_dropout": trunk.dropout,
        "post_mlp_drop": trunk.dropout,
        "attention_dropout": trunk.attention_dropout,
        "layerdrop": trunk.layer_drop,
        "end_drop_path_rate": trunk.drop_path,
        "end_of_block_targets": config.layers == "block",
        "cls_loss": config.cls_loss,
        "ema_encoder_only": modality == "text",
        "modalities": {SECTIONS[modality]: nested},
    }


def _image_of(config: Any) -> dict[str, Any]:
    if config.positions != "sincos" or config.relative_bias:
        raise ValueError("fairseq's data2vec 2.0 has sincos positions and no relative bias for images")
    return {
        "num_extra_tokens": int(config.class_token),
        "input_size": config.image_size,
        "patch_size": config.patch_size,
        "in_chans": config.channels,
    }


def _speech_of(config: Any) -> dict[str, Any]:
    return {
        "feature_encoder_spec": spec_of(config),
        "conv_pos_width": config.pos_kernel * config.pos_depth,
        "conv_pos_depth": config.pos_depth,
        "conv_pos_groups": config.pos_groups,
        "use_alibi_encoder": config.alibi != "none",
        "learned_alibi_scale": config.alibi in ("one", "head"),
        "learned_alibi_scale_per_head": config.alibi == "head",
        "learned_alibi_scale_per_layer": config.alibi_layers > 1,
    }


def _text_of(config: Any) -> dict[str, Any]:
    if not config.embedding_norm:
        raise ValueError("fairseq's data2vec 2.0 norms its embeddings: frontend.embedding_norm must be true")
    return {"max_source_positions": config.max_positions, "dropout": config.embedding_dropout}


def _frontend_names(encoder: Any, modality: str, theirs: str) -> Prefixes:
    frontend, ours = encoder.frontends[modality], f"frontends.{modality}."
    if modality == "image":
        return [
            (f"{theirs}local_encoder.proj.", f"{ours}patch_embed."),
            (f"{theirs}extra_tokens", f"{ours}class_token"),
        ]
    if modality == "text":
        parts = {"embed_tokens": "tokens", "embed_positions": "position_table", "layernorm_embedding": "norm"}
        return [(f"{theirs}local_encoder.{old}.", f"{ours}{new}.") for old, new in parts.items()]
    prefixes = [(f"{theirs}alibi_scale", f"{ours}alibi.scale")]
    prefixes += [
        (f"{theirs}project_features.1.", f"{ours}norm."),
        (f"{theirs}project_features.2.", f"{ours}projection."),
    ]
    for number in range(len(frontend.extractor.layers)):
        old, new = f"{theirs}local_encoder.conv_layers.{number}.", f"{ours}extractor.layers.{number}."
        prefixes += [(f"{old}0.", new), (f"{old}2.1.", f"{new}norm.")]
    for number in range(len(frontend.positions_conv)):  # their first part is a transpose
        prefixes += [(f"{theirs}relative_positional_encoder.{number + 1}.0.", f"{ours}positions_conv.{number}.")]
    return prefixes


def _modality(state: dict) -> str:
    named = {key.split(".")[1] for key in state if key.startswith("modality_encoders.")}
    known = {theirs: ours for ours, theirs in NAMES.items()}
    if len(named) != 1 or not named <= known.keys():
        raise ValueError(
            f"model has modality_encoders for {', '.join(sorted(named)) or 'nothing'}; "
            f"this reads one of {', '.join(known)}"
        )
    return known[named.pop()]


def _old_names(state: dict) -> dict:
    """Without the teacher and what early versions had, and with later names."""
    state = without(
        {key: value for key, value in state.items() if key != "_ema"},
        lambda key: key.endswith("encoder_mask"),
        "a buffer without use",
    )
    old, new = "positional_encoder.pos_embed", "positional_encoder.positions"
    return {key.replace(old, new): value for key, value in state.items()}


def _simplified(state: dict, objective: Data2Vec2) -> dict:
    """Fixed positions are computed here, and scales of ALiBi are one list. ValueError: other positions."""
    state = {
        key: value.flatten() if key.endswith("alibi_scale") and isinstance(value, torch.Tensor) else value
        for key, value in state.items()
    }
    given = state.pop("modality_encoders.IMAGE.fixed_positional_encoder.positions", None)
    if given is not None:
        expected = _positions(encoder_of(objective)[0])
        if given.shape != (1, *expected.shape) or not torch.allclose(given[0].float(), expected, atol=1e-3):
            raise ValueError(
                "modality_encoders.IMAGE.fixed_positional_encoder.positions are not sine and cosine of column and row"
            )
    return state


def _positions(encoder: Any) -> torch.Tensor:
    """(T, D)."""
    frontend = encoder.frontends["image"]
    tokens = torch.zeros(1, frontend.grid[0] * frontend.grid[1], encoder.trunk.config.dim)
    return frontend.positions(tokens, None).clone()


def _build(modality: str, cfg: dict, encoder: dict, state: dict, quirks: bool) -> Data2Vec2:
    if cfg.get("encoder_dropout", 0.1) != cfg.get("post_mlp_drop", 0.1):
        raise ValueError(
            f"cfg.model.post_mlp_drop is {cfg['post_mlp_drop']}; "
            f"it must equal cfg.model.encoder_dropout, {cfg['encoder_dropout']}"
        )
    prenet = int(encoder["prenet_depth"])
    text = modality == "text"
    trunk = TrunkConfig(
        depth=prenet + cfg["depth"],
        prenet_depth=prenet,
        dim=cfg["embed_dim"],
        num_heads=cfg["num_heads"],
        mlp_dim=int(cfg["embed_dim"] * cfg["mlp_ratio"]),
        norm_eps=cfg["norm_eps"],
        input_norm=not text,
        dropout=cfg.get("encoder_dropout", 0.1),
        input_dropout=0.0 if text else encoder.get("prenet_dropout", 0.0),
        attention_dropout=cfg.get("attention_dropout", 0.1),
        layer_drop=cfg.get("layerdrop", 0.0),
        prenet_layer_drop=encoder.get("prenet_layerdrop", 0.0),
        drop_path=cfg.get("end_drop_path_rate", 0.0),
    )
    settings_of = {"image": _image, "speech": _speech, "text": _text}[modality]
    frontend = settings_of(encoder, prenet + cfg["depth"], state, quirks)
    config = plugins.load("d2v.modalities", modality).FrontendConfig(**frontend)
    local = encoder.get("ema_local_encoder", False)
    parts = {
        "image": ("patch_embed",),
        "speech": ("extractor", "norm", "projection"),
        "text": ("tokens", "position_table", "norm"),
    }
    if cfg.get("ema_encoder_only", False) and not text:
        raise ValueError(
            "cfg.model.ema_encoder_only is True; "
            f"for {SECTIONS[modality]} only False is known to data2vec's published models"
        )
    plugin = plugins.load("d2v.objectives", "data2vec2")
    settings = plugin.Config(
        **targets(cfg, "block" if cfg.get("end_of_block_targets", False) else "ffn"),
        cls_loss=float(cfg.get("cls_loss", 0.0)),
        decoder=plugin.DecoderConfig(**_decoder(modality, encoder)),
        shared=[] if local else [f"frontends.{modality}.{part}" for part in parts[modality]],
        feed_tokens=not local,
        reference_padding=quirks,
    )
    return plugin.build(D2vModel(D2vConfig(frontends={modality: config}, trunk=trunk)), settings)


def _decoder(modality: str, encoder: dict) -> dict[str, Any]:
    theirs = encoder["decoder"]
    return {
        "dims": 2 if modality == "image" else 1,
        "dim": theirs["decoder_dim"],
        "depth": theirs["decoder_layers"],
        "kernel": theirs["decoder_kernel"],
        "groups": theirs["decoder_groups"],
        "residual": theirs["decoder_residual"],
        "head_layers": 1 if modality == "image" else theirs.get("projection_layers", 1),
        "head_ratio": theirs.get("projection_ratio", 2.0),
        "head_init": "trunk" if modality == "text" else "default",
        "dropout": theirs["input_dropout"],
        "noise": encoder["mask_noise_std"],
    }


def _image(encoder: dict, depth: int, state: dict, quirks: bool) -> dict[str, Any]:
    if encoder["num_extra_tokens"] not in (0, 1):
        raise ValueError(
            f"cfg.model.modalities.image.num_extra_tokens is {encoder['num_extra_tokens']}; it may be 0 or 1"
        )
    return {
        "image_size": encoder["input_size"],
        "patch_size": encoder["patch_size"],
        "channels": encoder["in_chans"],
        "relative_bias": False,
        "class_token": encoder["num_extra_tokens"] == 1,
        "positions": "sincos",
        "mask_token": False,
        "init": "xavier",
    }


def _speech(encoder: dict, depth: int, state: dict, quirks: bool) -> dict[str, Any]:
    width, kernels, strides = conv_layers(
        encoder["feature_encoder_spec"], "cfg.model.modalities.audio.feature_encoder_spec"
    )
    alibi = "none"
    if encoder["use_alibi_encoder"]:
        alibi = "head" if encoder["learned_alibi_scale_per_head"] else "one"
        if not encoder["learned_alibi_scale"]:
            if alibi == "head":
                raise ValueError(
                    "cfg.model.modalities.audio.learned_alibi_scale is False, yet its scale is per head; "
                    "it must be True"
                )
            alibi = "fixed"
    return {
        "conv_dim": width,
        "conv_kernels": kernels,
        "conv_strides": strides,
        "pos_kernel": max(3, int(encoder["conv_pos_width"]) // int(encoder["conv_pos_depth"])),
        "pos_depth": encoder["conv_pos_depth"],
        "pos_groups": encoder["conv_pos_groups"],
        "mask_token": False,
        "alibi": alibi,
        "alibi_layers": depth
        if encoder["use_alibi_encoder"] and encoder.get("learned_alibi_scale_per_layer", False)
        else 1,
        "reference_padding": quirks,
        "reference_padded_input": quirks,
    }


def _text(encoder: dict, depth: int, state: dict, quirks: bool) -> dict[str, Any]:
    keys = [f"modality_encoders.TEXT.local_encoder.{name}.weight" for name in ("embed_tokens", "embed_positions")]
    for key in keys:
        if key not in state:
            raise ValueError(f"model is incomplete: it has no key {key}")
    words, positions = (len(state[key]) for key in keys)
    # fairseq's dictionary: <s> 0, <pad> 1, </s> 2, <unk> 3, words, and <mask> appended last
    return {
        "vocab_size": words,
        "mask_token_id": words - 1,
        "max_positions": positions - 2,
        "embedding_norm": True,
        "embedding_dropout": encoder.get("dropout", 0.1),
        "reference_padded_input": quirks,
    }
